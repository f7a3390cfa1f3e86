"""Board profiles: what programs may use of a real part, and which emulated machine replaces it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.targets.mcu.cores import CORES

_LARGEST_FILE = 64 * 1024
_ADDRESS_SPACE = 2**32
# A profile may come from anywhere: only flags that change how code is generated, only options that
# describe the machine, and no values that could name a file.
_COMPILER_FLAG = re.compile(r"-(m|f|O|D)(?!plugin)[A-Za-z0-9_.+=-]*")
_EMULATOR_OPTIONS = ("-bios", "-cpu", "-m")
_EMULATOR_VALUE = re.compile(r"[A-Za-z0-9_.+=,-]+")


def _check_core(name: str) -> str:
    names = [core.name for core in CORES.values() if core.start_up is not None]
    if name not in names:
        raise ValueError(f"must be one of: {', '.join(names)}")
    return name


def _check_compiler_flags(flags: tuple[str, ...]) -> tuple[str, ...]:
    for flag in flags:
        if not _COMPILER_FLAG.fullmatch(flag):
            raise ValueError(f"{clean(flag, 40)!r}: only -m, -f, -O and -D flags are taken")
    return flags


def _check_emulator_arguments(arguments: tuple[str, ...]) -> tuple[str, ...]:
    options, values = arguments[::2], arguments[1::2]
    known = all(option in _EMULATOR_OPTIONS for option in options)
    if not known or len(options) != len(values) or not all(map(_EMULATOR_VALUE.fullmatch, values)):
        raise ValueError(f"must be pairs of {', '.join(_EMULATOR_OPTIONS)} and a plain value")
    return arguments


@dataclass(frozen=True)
class Memory:
    """A region of the address space.

    Attributes:
        origin: first address.
        size: bytes that the real part has.
    """

    origin: Annotated[int, Field(strict=True, ge=0, lt=_ADDRESS_SPACE, multiple_of=8)]
    size: Annotated[int, Field(strict=True, ge=1024, le=_ADDRESS_SPACE, multiple_of=8)]

    @property
    def end(self) -> int:
        """The address after the last one."""
        return self.origin + self.size


@dataclass(frozen=True)
class Emulator:
    """What stands in for the board.

    Attributes:
        machine: QEMU's name of it.
        arguments: further ones of QEMU's, in pairs of option and value.
    """

    machine: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]
    arguments: Annotated[tuple[str, ...], AfterValidator(_check_emulator_arguments)] = ()


@dataclass(frozen=True)
class Board:
    """A microcontroller board.

    Attributes:
        name: of the profile, which is a TOML file with all that follows.
        description: one line.
        core: name of its core among `cores.CORES`.
        clock_hz: of the core.
        flash, ram: the memory map.
        compiler_flags: on top of the core's own.
        emulator: None if nothing emulates it.
    """

    name: str
    description: Annotated[str, Field(min_length=1)]
    core: Annotated[str, AfterValidator(_check_core)]
    clock_hz: Annotated[int, Field(strict=True, ge=1, le=10**10)]
    flash: Memory
    ram: Memory
    compiler_flags: Annotated[tuple[str, ...], AfterValidator(_check_compiler_flags)] = ()
    emulator: Emulator | None = None

    @property
    def label(self) -> str:
        """The name, printable."""
        return clean(self.name, 40)


def board_names() -> list[str]:
    """Names of the boards that come with the package, sorted."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in _profiles().iterdir()
        if entry.name.endswith(".toml")
    )


def find_board(name: str) -> Board:
    """The board of that name, or the one that a `.toml` file describes.

    Raises:
        UsageError: if there is none, or the file is no valid profile.
    """
    if name in board_names():
        return _read_board(name, _profiles().joinpath(f"{name}.toml").read_text("utf-8"))
    if not name.endswith(".toml"):
        raise UsageError(
            f"unknown board {clean(name, 40)!r}; give the path of a .toml profile or one of: "
            f"{', '.join(board_names())}"
        )
    path = Path(name)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(f"{clean(name, 200)}: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise UsageError(f"{clean(name, 200)}: larger than {_LARGEST_FILE} bytes, so no profile")
    try:
        return _read_board(path.stem, content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{clean(name, 200)}: not text in UTF-8") from error


def check_runs(board: Board, code: str) -> None:
    """Refuse a board whose core cannot run code for the core of name `code`.

    Raises:
        UsageError: with the boards that can.
    """
    if not CORES[board.core].runs(code):
        raise UsageError(
            f"board {board.label} has a {board.core}, which does not run code for {code}; "
            f"{boards_for(code)}"
        )


def boards_for(code: str) -> str:
    """A clause that names the boards which run code for the core of name `code`."""
    names = [name for name in board_names() if CORES[find_board(name).core].runs(code)]
    return (
        f"boards that do: {', '.join(names)}" if names else "it runs on the host, without a board"
    )


def check_fit(board: Board, flash_bytes: int, ram_bytes: int) -> None:
    """Refuse a program that is larger than the board.

    Args:
        board: the board.
        flash_bytes: code, constants and initial values.
        ram_bytes: static data, inputs, outputs and stack.

    Raises:
        ModelError: with the figures.
    """
    needs = [
        f"{needed:,} bytes of {kind}, of which it has {memory.size:,}"
        for kind, needed, memory in (
            ("flash", flash_bytes, board.flash),
            ("RAM", ram_bytes, board.ram),
        )
        if needed > memory.size
    ]
    if needs:
        raise ModelError(f"does not fit board {board.label}: needs {' and '.join(needs)}")


def linker_memory(board: Board) -> str:
    """The board's part of the linker script, which includes `sections.ld`."""
    regions = "".join(
        f"  {name} ({access}) : ORIGIN = {memory.origin:#x}, LENGTH = {memory.size}\n"
        for name, access, memory in (("FLASH", "rx", board.flash), ("RAM", "rwx", board.ram))
    )
    return f"MEMORY\n{{\n{regions}}}\nINCLUDE sections.ld\n"


def runtime_file(name: str) -> str:
    """The text of a file of `runtime/mcu/`."""
    return files("tbn_compile").joinpath("mcu", name).read_text("utf-8")


def support_files(board: Board) -> dict[str, str]:
    """What a project for the board needs beside its own sources, by file name."""
    names = [str(CORES[board.core].start_up), "board.h", "board.c", "semihosting.h", "sections.ld"]
    return {**{name: runtime_file(name) for name in names}, "memory.ld": linker_memory(board)}


def emulator_command(board: Board, image: str) -> list[str]:
    """The command that runs an image on the emulated board.

    Raises:
        UsageError: if nothing emulates it.
    """
    command = CORES[board.core].emulator
    if board.emulator is None or command is None:
        raise UsageError(f"board {board.label} has no emulator; add one to its profile")
    return [
        command, "-machine", board.emulator.machine, *board.emulator.arguments,
        "-display", "none", "-monitor", "none", "-serial", "none",
        "-semihosting-config", "enable=on,target=native",
        "-kernel", image,
    ]  # fmt: skip


def _profiles() -> Any:
    return files("tbn_compile.targets.mcu.boards").joinpath("profiles")


def _read_board(name: str, text: str) -> Board:
    where = f"board {clean(name, 40)}"
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: no valid TOML: {error}") from error
    _refuse_unknown_keys(where, table, Board, "name")
    for key, kind in (("flash", Memory), ("ram", Memory), ("emulator", Emulator)):
        if isinstance(table.get(key), dict):
            _refuse_unknown_keys(f"{where}: {key}", table[key], kind)
    try:
        board = TypeAdapter(Board).validate_python({**table, "name": name})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UsageError(f"{where}: {place}: {problem['msg']}") from error
    if max(board.flash.end, board.ram.end) > _ADDRESS_SPACE:
        raise UsageError(f"{where}: memory beyond the address {_ADDRESS_SPACE - 1:#x}")
    if board.flash.origin < board.ram.end and board.ram.origin < board.flash.end:
        raise UsageError(f"{where}: flash and ram overlap")
    return board


def _refuse_unknown_keys(where: str, table: dict[str, Any], kind: Any, *others: str) -> None:
    known = [field.name for field in fields(kind) if field.name not in others]
    for key in table:
        if key not in known:
            raise UsageError(
                f"{where}: unknown key {clean(key, 40)!r}; known are: {', '.join(known)}"
            )
