"""A C library for compilers that come without one, such as Debian's for RISC-V: picolibc.

It is compiled here. Its sources are those of pip's package `pythondata-software-picolibc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tbn_compile.errors import UsageError
from tbn_compile.targets.mcu.boards.profile import runtime_file
from tbn_compile.targets.mcu.boards.toolchain import CompilationError, Toolchain
from tbn_compile.targets.mcu.cores import Core

_PACKAGE = "pythondata_software_picolibc"
_PARTS = {
    "libc/errno": "errno",
    "libc/string": "memcmp memcpy memmove memset",
    "libm/math": (
        "kf_cos kf_rem_pio2 kf_sin kf_tan sf_asinh sf_atan sf_atan2 sf_ceil sf_cos sf_cosh sf_erf "
        "sf_exp sf_exp2 sf_fabs sf_floor sf_fmod sf_log sf_log2 sf_pow sf_rem_pio2 sf_sin sf_sinh "
        "sf_sqrt sf_tan sf_tanh"
    ),
    "libm/common": (
        "cosf math_errf_check_oflowf math_errf_check_uflowf math_errf_divzerof math_errf_invalidf "
        "math_errf_may_uflowf math_errf_oflowf math_errf_uflowf math_errf_with_errnof sf_copysign "
        "sf_exp sf_exp2 sf_exp2_data sf_expm1 sf_finite sf_fmax sf_fmin sf_fpclassify "
        "sf_issignaling sf_log sf_log1p sf_log2 sf_log2_data sf_log_data sf_nearbyint sf_pow "
        "sf_pow_log2_data sf_rint sf_round sf_scalbn sf_trunc sincosf sincosf_data sinf"
    ),
}
SOURCES = tuple(f"{folder}/{name}.c" for folder, names in _PARTS.items() for name in names.split())
"""What a compiled model may call, memory and float32 mathematics: files below `source_folder`."""
INCLUDE_FOLDERS = ("libc/include", "libc/tinystdio", "libm/common")
"""Those below `source_folder` that a compiler must search for headers."""


@dataclass(frozen=True)
class CLibrary:
    """What a program needs to use the library.

    Attributes:
        flags: for compiling it.
        link_flags: for linking it, in its folder.
    """

    flags: tuple[str, ...]
    link_flags: tuple[str, ...]


def prepare_c_library(toolchain: Toolchain, flags: tuple[str, ...], folder: Path) -> CLibrary:
    """Compile the library into a folder, unless the toolchain has one.

    Raises:
        UsageError: if the sources are not installed.
    """
    (folder / "probe.c").write_text("#include <math.h>\n#include <string.h>\n", encoding="utf-8")
    try:
        toolchain.run(folder, "-E", "probe.c", "-o", "probe.i")
    except CompilationError:
        return _compile(toolchain, flags, folder)
    return CLibrary((), ("-lm",))


def source_folder(core: Core) -> Path:
    """Where the library's sources are installed.

    Raises:
        UsageError: if they are not; it names the core whose compiler needs them.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            f"the C compiler for {core.name} has no C library; "
            "install pythondata-software-picolibc with pip"
        )
    return Path(spec.origin).parent / "data" / "newlib"


def _compile(toolchain: Toolchain, flags: tuple[str, ...], folder: Path) -> CLibrary:
    root = source_folder(toolchain.core)
    (folder / "picolibc.h").write_text(runtime_file("picolibc.h"), encoding="utf-8")
    includes = ("-I.", *(f"-isystem{root / part}" for part in INCLUDE_FOLDERS))
    toolchain.run(
        folder,
        *flags, "-O2", "-w", "-ffreestanding", *includes, *toolchain.merge_flags,
        *(str(root / name) for name in SOURCES), "-o", "library.o",
    )  # fmt: skip
    return CLibrary(includes, ("library.o", "-nodefaultlibs", "-lgcc"))
