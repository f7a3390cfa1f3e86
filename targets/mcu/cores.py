"""The processor cores that the microcontroller targets compile for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Core:
    """A core, as compilers, emulators and the cost model see it.

    Attributes:
        name: of the target, such as "cortex-m4".
        description: one line for lists of targets.
        compiler: the command of its C compiler.
        package: the Debian package that has the compiler.
        flags: what makes the compiler emit code for it.
        zig_flags: what makes `zig cc` emit the same code.
        start_up: the file of `runtime/mcu` that starts it; None where an operating system does.
        emulator: the command that emulates it; None where the host runs it.
        has_fpu: whether float32 arithmetic is in hardware.
        also_runs: names of the other cores whose code it runs.
    """

    name: str
    description: str
    compiler: str
    package: str
    flags: tuple[str, ...]
    zig_flags: tuple[str, ...]
    start_up: str | None
    emulator: str | None
    has_fpu: bool
    also_runs: tuple[str, ...] = ()

    def runs(self, code: str) -> bool:
        """Whether it runs code that was compiled for the core of that name."""
        return code == self.name or code in self.also_runs


def _arm(
    name: str, description: str, flags: str, zig_cpu: str, *, has_fpu: bool, also_runs: str = ""
) -> Core:
    return Core(
        name=name,
        description=description,
        compiler="arm-none-eabi-gcc",
        package="gcc-arm-none-eabi libnewlib-arm-none-eabi",
        flags=("-mthumb", *flags.split()),
        zig_flags=(
            "-target",
            f"thumb-freestanding-{'eabihf' if has_fpu else 'eabi'}",
            f"-mcpu={zig_cpu}",
        ),
        start_up="start_arm.S",
        emulator="qemu-system-arm",
        has_fpu=has_fpu,
        also_runs=tuple(also_runs.split()),
    )


def _riscv(name: str, abi: str, zig_cpu: str, *, has_fpu: bool, also_runs: str = "") -> Core:
    return Core(
        name=name,
        description=f"RISC-V {name.upper()}",
        compiler="riscv64-unknown-elf-gcc",
        package="gcc-riscv64-unknown-elf",
        # Later specifications move the control registers to an extension of their own, for which
        # Debian's compiler has no 32-bit libraries.
        flags=(f"-march={name}", f"-mabi={abi}", "-misa-spec=2.2"),
        zig_flags=("-target", "riscv32-freestanding-none", f"-mcpu={zig_cpu}", f"-mabi={abi}"),
        start_up="start_riscv.S",
        emulator="qemu-system-riscv32",
        has_fpu=has_fpu,
        also_runs=tuple(also_runs.split()),
    )


CORES = {
    core.name: core
    for core in (
        Core("c", "portable C99", "cc", "gcc", (), (), None, None, has_fpu=True),
        _arm(
            "cortex-m0plus", "Arm Cortex-M0+", "-mcpu=cortex-m0plus", "cortex_m0plus", has_fpu=False
        ),
        _arm(
            "cortex-m3",
            "Arm Cortex-M3",
            "-mcpu=cortex-m3",
            "cortex_m3",
            has_fpu=False,
            also_runs="cortex-m0plus",
        ),
        _arm(
            "cortex-m4",
            "Arm Cortex-M4 with FPU",
            "-mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16",
            "cortex_m4+vfp4d16sp",
            has_fpu=True,
            also_runs="cortex-m0plus cortex-m3",
        ),
        _arm(
            "cortex-m7",
            "Arm Cortex-M7 with FPU",
            "-mcpu=cortex-m7 -mfloat-abi=hard -mfpu=fpv5-sp-d16",
            "cortex_m7+fp_armv8d16sp",
            has_fpu=True,
            also_runs="cortex-m0plus cortex-m3 cortex-m4",
        ),
        _arm(
            "cortex-m33",
            "Arm Cortex-M33 with FPU",
            "-mcpu=cortex-m33 -mfloat-abi=hard -mfpu=fpv5-sp-d16",
            "cortex_m33+fp_armv8d16sp",
            has_fpu=True,
            also_runs="cortex-m0plus cortex-m3 cortex-m4 cortex-m7",
        ),
        _arm(
            "cortex-m55",
            "Arm Cortex-M55 with FPU",
            "-mcpu=cortex-m55+nomve -mfloat-abi=hard -mfpu=auto",
            "cortex_m55-mve-mve_fp+fp_armv8d16",
            has_fpu=True,
            also_runs="cortex-m0plus cortex-m3 cortex-m4 cortex-m7 cortex-m33",
        ),
        _riscv("rv32imc", "ilp32", "generic_rv32+m+c+zicsr", has_fpu=False),
        _riscv(
            "rv32imafc",
            "ilp32f",
            "generic_rv32+m+a+f+c+zicsr",
            has_fpu=True,
            also_runs="rv32imc",
        ),
    )
}
"""Every core by its name."""
