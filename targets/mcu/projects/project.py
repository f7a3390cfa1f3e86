"""Complete projects around a program, each of which builds with one command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tbn_compile.errors import UsageError, clean
from tbn_compile.files import staging_folder
from tbn_compile.targets.mcu.archive.self_test import self_test_sources
from tbn_compile.targets.mcu.boards.c_library import INCLUDE_FOLDERS
from tbn_compile.targets.mcu.boards.profile import (
    Board,
    board_names,
    check_runs,
    emulator_command,
    find_board,
    support_files,
)
from tbn_compile.targets.mcu.cores import CORES
from tbn_compile.targets.mcu.program import Program
from tbn_compile.targets.mcu.projects.library_sources import library_files
from tbn_compile.targets.mcu.templating import render, template_names

TEMPLATES = ("arduino", "cmake", "qemu", "zephyr")
_IMAGES = {"cmake": "$<TARGET_FILE:self_test>", "qemu": "build/self_test.elf"}
"""What the templates that build for a board call the program."""
_SKETCH = "sketch.ino"
_SKETCH_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


def emit_project(
    program: Program, directory: Path, template: str, board: Board | None = None
) -> None:
    """Write a project that builds a program and runs its self-test; whole or not at all.

    Args:
        program: what it builds.
        directory: must not exist, or be empty.
        template: one of `TEMPLATES`; the README in the project names the command.
        board: that "qemu" and "cmake" build for; "cmake" builds portable C for the host. Arduino
            and Zephyr know boards of their own.

    Raises:
        ModelError: if the project cannot be written.
        UsageError: if the template does not exist, the directory holds something or bears a name
            that the template cannot use, or the template needs another board.
    """
    board = check_project(program.core, directory, template, board)
    directory = directory.resolve()
    exists = _exists_empty(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    files = _project_files(program, directory.name, template, board)
    with staging_folder(directory / template if exists else directory) as staging:
        root = staging if exists else staging / directory.name
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")


def check_project(
    core: str, directory: Path, template: str, board: Board | None = None
) -> Board | None:
    """Refuse what `emit_project` would refuse, before there is a program.

    Args:
        core: name of the program's core.
        directory: must not exist, or be empty.
        template: one of `TEMPLATES`.
        board: see `emit_project`.

    Returns:
        The board that the project is built for; None if it is the host's or the template's matter.

    Raises:
        UsageError: if the template does not exist, the directory holds something or bears a name
            that the template cannot use, or the template needs another board.
    """
    if template not in TEMPLATES:
        known = ", ".join(TEMPLATES)
        raise UsageError(f"unknown template {clean(template, 40)!r}; templates: {known}")
    _exists_empty(directory.resolve())
    if template == "arduino":
        _sketch_name(directory.resolve().name)
    return _board_of(core, template, board)


def _exists_empty(directory: Path) -> bool:
    try:
        filled = any(directory.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UsageError(f"{clean(directory, 200)}: {error.strerror}; choose another") from error
    if filled:
        raise UsageError(f"{clean(directory, 200)} is not empty; choose another folder")
    return True


def _project_files(
    program: Program, directory: str, template: str, board: Board | None
) -> dict[str, str]:
    """Every file of a project: path in it to text."""
    sources = {**program.sources, **self_test_sources(program)}
    support = support_files(board) if board else {}
    library = library_files(CORES[program.core]) if board else {}
    values = {
        "model_name": _plain(program.model_name),
        "core": program.core,
        "has_fpu": CORES[program.core].has_fpu,
        "sources": _translation_units(sources),
        "support": _translation_units(support),
        "library": bool(library),
        "library_folders": INCLUDE_FOLDERS,
        **_building(program, template, board),
    }
    rendered = {
        name.removesuffix(".jinja"): render(f"project/{template}/{name}", **values)
        for name in template_names(f"project/{template}")
    }
    named = {name: text for name, text in rendered.items() if text.strip()}
    if template == "arduino":
        named[f"{_sketch_name(directory)}.ino"] = named.pop(_SKETCH)
    folder = "src" if template == "arduino" else "model"
    return {
        **named,
        **{f"{folder}/{name}": text for name, text in sources.items()},
        **{f"board/{name}": text for name, text in support.items()},
        **{f"libc/{name}": text for name, text in library.items()},
    }


def _board_of(core: str, template: str, board: Board | None) -> Board | None:
    """The board that a project is built for; None if it is the host's or the template's matter."""
    if template not in _IMAGES or (template == "cmake" and board is None and core == "c"):
        return None
    if board is not None:
        check_runs(board, core)
        return board
    able = [name for name in board_names() if CORES[find_board(name).core].runs(core)]
    mend = f"give one of: {', '.join(able)}" if able else "portable C takes template cmake"
    raise UsageError(f"template {template} needs a board for {core}; {mend}")


def _building(program: Program, template: str, board: Board | None) -> dict[str, Any]:
    """What the build files say of compiler, board and emulator."""
    if template not in _IMAGES:
        return {}
    image = _IMAGES[template]
    if board is None:
        return {"board": None, "run": [image], "emulated": False}
    core = CORES[program.core]
    emulated = board.emulator is not None or template == "qemu"
    return {
        "board": _plain(board.name),
        "compiler": core.compiler,
        "flags": [*core.flags, *board.compiler_flags],
        "packages": core.package,
        "run": emulator_command(board, image) if emulated else [],
        "emulated": emulated,
    }


def _translation_units(files: dict[str, str]) -> list[str]:
    return sorted(name for name in files if name.endswith((".c", ".S")))


def _plain(text: str) -> str:
    """Text that means nothing to Markdown, make or a shell."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:60].strip("-") or "model"


def _sketch_name(directory: str) -> str:
    """Arduino asks that a sketch bears the name of its folder, and that of few characters."""
    if not _SKETCH_NAME.fullmatch(directory):
        raise UsageError(
            f"Arduino takes no sketch named {clean(directory, 80)!r}; choose a folder of at most "
            "63 letters, digits, _, . and -"
        )
    return directory
