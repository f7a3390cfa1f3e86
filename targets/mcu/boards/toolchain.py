"""Cross-compilers: find the one of a core, and run it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.targets.mcu.cores import Core

STRICT_FLAGS = (
    "-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic",
)  # fmt: skip
"""What every C file of a model, and of ours, is compiled with."""

_TIMEOUT_SECONDS = 300
_TELLING = re.compile(r"(?<!collect2: )error:|undefined reference|cannot find")


class CompilationError(ModelError):
    """The compiler or linker refused a program.

    Args:
        messages: all that it wrote.
    """

    def __init__(self, messages: str) -> None:
        self.messages = messages
        lines = messages.splitlines() or ["the compiler does not say why"]
        told = next((line for line in lines if _TELLING.search(line)), lines[0])
        super().__init__(f"the C code does not compile: {clean(told, 300)}")


@dataclass(frozen=True)
class Toolchain:
    """A C compiler and the flags that make it emit code for a core.

    Attributes:
        command: what to run.
        core: that it compiles for.
        merge_flags: what links objects into one object, their sections apart as far as it can.
    """

    command: tuple[str, ...]
    core: Core
    merge_flags: tuple[str, ...]

    def run(self, folder: Path, *arguments: str) -> None:
        """Compile or link in a folder, with arguments relative to it.

        Raises:
            CompilationError: if the compiler fails.
            ModelError: if it takes minutes.
        """
        try:
            done = subprocess.run(  # noqa: S603  # a compiler that was found on the path; no shell
                [*self.command, *arguments],
                cwd=folder,
                capture_output=True,
                check=False,
                encoding="utf-8",
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=_TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"the C compiler took more than {_TIMEOUT_SECONDS} s") from error
        if done.returncode != 0:
            raise CompilationError(done.stderr)


def find_toolchain(core: Core) -> Toolchain:
    """The compiler of a core: its own, or `zig cc` from pip's package `ziglang`.

    Raises:
        UsageError: if neither is installed; the text names both ways to get one.
    """
    path = shutil.which(core.compiler)
    if path is not None:
        return Toolchain((path, *core.flags), core, ("-r", "-nostdlib", "-Wl,--unique"))
    if find_spec("ziglang") is not None:
        command = (sys.executable, "-m", "ziglang", "cc", *core.zig_flags)
        return Toolchain(command, core, ("-r", "-nostdlib"))
    raise UsageError(
        f"no C compiler for {core.name}: install Debian's {core.package}, or ziglang with pip"
    )
