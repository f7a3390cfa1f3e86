"""Build programs: for a board, for the machine this runs on, and the plug-in that counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tbn_compile.errors import ModelError, clean
from tbn_compile.targets.mcu.boards.c_library import prepare_c_library
from tbn_compile.targets.mcu.boards.profile import Board, check_fit, linker_memory, runtime_file
from tbn_compile.targets.mcu.boards.toolchain import (
    STRICT_FLAGS,
    CompilationError,
    Toolchain,
    find_toolchain,
)
from tbn_compile.targets.mcu.cores import CORES

_SECTION_FLAGS = ("-ffunction-sections", "-fdata-sections")
_FILE_NAME = re.compile(r"[A-Za-z0-9_]{1,100}\.[chS]")
_OVERFLOW = re.compile(
    r"region [`'](?P<region>FLASH|RAM)'(?: overflowed by|: overflowed by) (?P<excess>\d+) bytes"
)


def build_for_board(sources: Mapping[str, str], core: str, board: Board, folder: Path) -> Path:
    """Compile and link a program with the board's start-up code.

    Args:
        sources: texts by file name, `main` among them; code in files whose names start with
            `harness_` goes into a section apart from the model's.
        core: whose code it is.
        board: that it is to run on.
        folder: an empty one, in which all is built.

    Returns:
        The image, an ELF file.

    Raises:
        ModelError: if a source does not compile, or the program does not fit the board.
        UsageError: if the compiler or its C library is missing.
    """
    toolchain = find_toolchain(CORES[core])
    start_up = str(CORES[core].start_up)
    texts = {
        **sources,
        f"harness_{start_up}": runtime_file(start_up),
        "harness_board.c": runtime_file("board.c"),
        **{name: runtime_file(name) for name in ("board.h", "semihosting.h", "sections.ld")},
        "memory.ld": linker_memory(board),
    }
    _write(texts, folder)
    flags = (*board.compiler_flags, *_SECTION_FLAGS)
    library = prepare_c_library(toolchain, flags, folder)
    objects = _compile(texts, toolchain, (*flags, *library.flags), folder)
    try:
        toolchain.run(
            folder,
            *flags, *objects, *library.link_flags,
            "-nostartfiles", "-Wl,--gc-sections", "-L.", "-T", "memory.ld", "-o", "image.elf",
        )  # fmt: skip
    except CompilationError as error:
        _refuse_overflow(error.messages, board)
        raise
    return folder / "image.elf"


def build_for_host(sources: Mapping[str, str], folder: Path) -> Path:
    """Compile and link a program for the machine that this runs on.

    Args and errors are those of `build_for_board`.

    Returns:
        The executable.
    """
    toolchain = find_toolchain(CORES["c"])
    texts = {
        **sources,
        "harness_native.c": runtime_file("native.c"),
        **{name: runtime_file(name) for name in ("board.h", "semihosting.h")},
    }
    _write(texts, folder)
    toolchain.run(folder, *_compile(texts, toolchain, (), folder), "-lm", "-o", "image")
    return folder / "image"


def build_plug_in(folder: Path) -> Path:
    """Compile the plug-in that counts in QEMU.

    Raises:
        UsageError: if the host's compiler is missing.
    """
    _write({"count.c": runtime_file("count.c")}, folder)
    toolchain = find_toolchain(CORES["c"])
    toolchain.run(
        folder, *STRICT_FLAGS, "-D_GNU_SOURCE", "-shared", "-fPIC", "count.c", "-o", "count.so"
    )
    return folder / "count.so"


def _write(texts: Mapping[str, str], folder: Path) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _compile(
    texts: Mapping[str, str], toolchain: Toolchain, flags: tuple[str, ...], folder: Path
) -> list[str]:
    objects: list[str] = []
    for name in texts:
        stem, _, kind = name.rpartition(".")
        if kind in ("c", "S"):
            strict = STRICT_FLAGS if kind == "c" else ()
            toolchain.run(folder, *strict, *flags, "-c", name, "-o", f"{stem}.o")
            objects.append(f"{stem}.o")
    return objects


def check_file_names(sources: Mapping[str, str]) -> None:
    """Refuse sources whose names could reach beyond a folder.

    Raises:
        ModelError: with the name.
    """
    for name in sources:
        if not _FILE_NAME.fullmatch(name) or name.startswith("harness_"):
            raise ModelError(f"source file {clean(name, 80)!r} has no plain name")


def _refuse_overflow(messages: str, board: Board) -> None:
    excess = {"FLASH": 0, "RAM": 0}
    for match in _OVERFLOW.finditer(messages):
        region = match["region"]
        excess[region] = max(excess[region], int(match["excess"]))
    flash, ram = (
        memory.size + excess[region] if excess[region] else 0
        for region, memory in (("FLASH", board.flash), ("RAM", board.ram))
    )
    check_fit(board, flash, ram)
