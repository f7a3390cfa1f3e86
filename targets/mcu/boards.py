"""Board profiles: what programs may use of a real part, and which emulated machine replaces it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.targets.mcu.cores import CORES

_LARGEST_FILE = 64 * 1024
_ADDRESS_SPACE = 2**32
_LEAST_MEMORY = 1024
_ALIGNMENT = 8
_HIGHEST_CLOCK = 10**10
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
# A profile may come from anywhere: only flags that change how code is generated, only options that
# describe the machine, and no values that could name a file.
_COMPILER_FLAG = re.compile(r"-(m|f|O|D)(?!plugin)[A-Za-z0-9_.+=-]*")
_EMULATOR_OPTIONS = ("-bios", "-cpu", "-m")
_EMULATOR_VALUE = re.compile(r"[A-Za-z0-9_.+=,-]+")


@dataclass(frozen=True)
class Memory:
    """A region of the address space.

    Attributes:
        origin: first address.
        size: bytes that the real part has.
    """

    origin: int
    size: int


@dataclass(frozen=True)
class Emulator:
    """What stands in for the board.

    Attributes:
        machine: QEMU's name of it.
        arguments: further ones of QEMU's, in pairs of option and value.
    """

    machine: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """A microcontroller board.

    Attributes:
        name: of the profile.
        description: one line.
        core: name of its core among `cores.CORES`.
        flash, ram: the memory map.
        clock_hz: of the core.
        compiler_flags: on top of the core's own.
        emulator: None if nothing emulates it.
    """

    name: str
    description: str
    core: str
    flash: Memory
    ram: Memory
    clock_hz: int
    compiler_flags: tuple[str, ...] = ()
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
    return files("tbn_compile.targets.mcu").joinpath("boards")


def _read_board(name: str, text: str) -> Board:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"board {clean(name, 40)}: no valid TOML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"board {clean(name, 40)}: no valid TOML: nested too deeply") from error
    fields = _Fields(f"board {clean(name, 40)}", table)
    board = Board(
        name=name,
        description=fields.take("description", _text),
        core=fields.take("core", _core),
        clock_hz=fields.take("clock_hz", _whole(1, _HIGHEST_CLOCK)),
        compiler_flags=fields.take("compiler_flags", _compiler_flags, ()),
        flash=_memory(fields.table("flash")),
        ram=_memory(fields.table("ram")),
        emulator=_emulator(fields.table("emulator")) if "emulator" in table else None,
    )
    fields.finish()
    if _overlap(board.flash, board.ram):
        raise UsageError(f"board {board.label}: flash and ram overlap")
    return board


class _Fields:
    """The fields of a table: each is taken once, and what is left over is an error."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self._where = where
        self._values = values
        self._known: list[str] = []

    def take(self, key: str, check: Callable[[Any], Any], default: Any = None) -> Any:
        self._known.append(key)
        if key not in self._values:
            if default is None:
                raise UsageError(f"{self._where}: {key} is missing")
            return default
        try:
            return check(self._values[key])
        except ValueError as error:
            raise UsageError(f"{self._where}: {key} {error}") from error

    def table(self, key: str) -> _Fields:
        return _Fields(f"{self._where}: {key}", self.take(key, _table))

    def finish(self) -> None:
        for key in self._values:
            if key not in self._known:
                raise UsageError(
                    f"{self._where}: unknown key {clean(key, 40)!r}; "
                    f"known are: {', '.join(sorted(self._known))}"
                )


def _memory(fields: _Fields) -> Memory:
    origin = fields.take("origin", _whole(0, _ADDRESS_SPACE - 1, _ALIGNMENT))
    size = fields.take("bytes", _whole(_LEAST_MEMORY, _ADDRESS_SPACE - origin, _ALIGNMENT))
    fields.finish()
    return Memory(origin, size)


def _emulator(fields: _Fields) -> Emulator:
    machine = fields.take("machine", _word)
    arguments = fields.take("arguments", _emulator_arguments, ())
    fields.finish()
    return Emulator(machine, arguments)


def _overlap(first: Memory, second: Memory) -> bool:
    return first.origin < second.origin + second.size and second.origin < first.origin + first.size


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a table")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def _word(value: Any) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError("must be one word of letters, digits, _, ., + and -")
    return value


def _core(value: Any) -> str:
    boards = [core.name for core in CORES.values() if core.start_up is not None]
    if value not in boards:
        raise ValueError(f"must be one of: {', '.join(boards)}")
    return str(value)


def _whole(least: int, most: int, step: int = 1) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most or value % step:
            multiple = f", a multiple of {step}" if step > 1 else ""
            raise ValueError(f"must be a whole number from {least} to {most}{multiple}")
        return value

    return check


def _compiler_flags(value: Any) -> tuple[str, ...]:
    flags = _texts(value)
    for flag in flags:
        if not _COMPILER_FLAG.fullmatch(flag):
            raise ValueError(f"has {clean(flag, 40)!r}; only -m, -f, -O and -D flags are taken")
    return flags


def _emulator_arguments(value: Any) -> tuple[str, ...]:
    arguments = _texts(value)
    options, values = arguments[::2], arguments[1::2]
    known = all(option in _EMULATOR_OPTIONS for option in options)
    if not known or len(options) != len(values) or not all(map(_EMULATOR_VALUE.fullmatch, values)):
        raise ValueError(f"must be pairs of {', '.join(_EMULATOR_OPTIONS)} and a plain value")
    return arguments


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("must be a list of texts")
    return tuple(value)
