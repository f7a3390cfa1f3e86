"""The C library as sources, for projects whose compiler comes without one."""

from __future__ import annotations

from pathlib import Path

from tbn_compile.targets.mcu.boards.c_library import SOURCES, source_folder
from tbn_compile.targets.mcu.boards.profile import runtime_file
from tbn_compile.targets.mcu.cores import Core

_WITHOUT_LIBRARY = frozenset({"riscv64-unknown-elf-gcc"})
"""Compilers that Debian has no small C library for."""
_HEADERS = (
    "libc/ctype/local.h",
    "libc/include/**/*.h",
    "libc/locale/setlocale.h",
    "libc/string/local.h",
    "libc/tinystdio/*.h",
    "libm/common/*.h",
)
_LICENCES = ("COPYING.NEWLIB", "COPYING.picolibc")
_CONFIGURATION = "libc/include/picolibc.h"


def library_files(core: Core) -> dict[str, str]:
    """Picolibc's sources, headers and licences, by relative path; none if none are needed.

    Args:
        core: whose compiler may lack a library.

    Raises:
        UsageError: if the sources are not installed.
    """
    if core.compiler not in _WITHOUT_LIBRARY:
        return {}
    root = source_folder(core)
    paths = [root / name for name in SOURCES]
    paths += [path for pattern in _HEADERS for path in root.glob(pattern)]
    files = {path.relative_to(root).as_posix(): _text(path) for path in paths}
    licences = {name: _text(root.parent / name) for name in _LICENCES}
    return {**files, **licences, _CONFIGURATION: runtime_file("picolibc.h")}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
