"""Run a compiled model on an emulated board, or on the machine that this runs on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.targets.mcu.boards.building import (
    build_for_board,
    build_for_host,
    build_plug_in,
    check_file_names,
)
from tbn_compile.targets.mcu.boards.harness import (
    Arrays,
    harness_sources,
    input_bytes,
    read_results,
)
from tbn_compile.targets.mcu.boards.image import Image, read_image
from tbn_compile.targets.mcu.boards.profile import Board, boards_for, check_runs, emulator_command
from tbn_compile.targets.mcu.cores import CORES
from tbn_compile.targets.mcu.program import Program

_EXECUTOR_FUNCTIONS = ("tvmgen_default_run", "tvmgen_default___tvm_main__")
_OPERATOR_PREFIX = "tvmgen_default_"
_MARKERS = ("tbn_start_counting", "tbn_stop_counting")
_STACK_OVERRUN = 2**32 - 1
_FAULT = 64
_REASONS = {
    32: "it could not open its files",
    33: "it could not read its inputs",
    34: "the model returned an error",
    35: "it could not write its outputs",
}
# What an emulated program may ask of Linux through semihosting ends at files: no processes.
_SANDBOX = (
    ("-sandbox", "on,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
    if sys.platform == "linux"
    else ()
)
# The model's code has nothing to say; what it writes all the same would pile up in memory.
_QUIET = (
    "-chardev", "null,id=quiet", "-semihosting-config", "enable=on,target=native,chardev=quiet",
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """What a core has executed. Memory accesses of several registers count one for each.

    Attributes:
        instructions, loads, stores: how many.
    """

    instructions: int
    loads: int
    stores: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.instructions + other.instructions,
            self.loads + other.loads,
            self.stores + other.stores,
        )


@dataclass(frozen=True)
class ProgramCounts:
    """What a program has executed, over all its runs.

    Helpers of the compiler and the C library count for the operator that called them.

    Attributes:
        executor: the code that calls the operators; copies are its own work.
        operators: for each of the program's operators, in order.
    """

    executor: Counts
    operators: tuple[Counts, ...]

    @property
    def total(self) -> Counts:
        """Of all."""
        return sum(self.operators, self.executor)


@dataclass(frozen=True)
class EmulatorRun:
    """What running on a board has given.

    Attributes:
        outputs: for each set of inputs, the outputs in the program's order.
        stack_bytes: the most that was in use, the frames of the main program among them.
        image: what was run.
    """

    outputs: tuple[Arrays, ...]
    stack_bytes: int
    image: Image


def run_on_board(
    program: Program,
    board: Board,
    input_sets: Sequence[Arrays],
    *,
    timeout: float = 120.0,
) -> EmulatorRun:
    """Build a program, and run it on an emulated board.

    The program's code reaches the emulator as it is: it can read and write this user's files, but
    start no process.

    Args:
        program: what to run.
        board: where.
        input_sets: for each run, values in the order of the program's inputs.
        timeout: seconds that the emulator may take.

    Raises:
        ModelError: if the program does not compile, does not fit the board, faults or takes longer.
        UsageError: if the board cannot run it, or a compiler or the emulator is missing.
    """
    with _prepared(program, board, input_sets, timeout) as prepared:
        return prepared.run()


def count_on_board(
    program: Program, board: Board, input_sets: Sequence[Arrays], *, timeout: float = 120.0
) -> tuple[EmulatorRun, ProgramCounts]:
    """Like `run_on_board`, and count what the core executes; the counts never vary.

    Raises:
        ModelError: also if the code lacks a function that the program names, or calls it not.
        UsageError: also if there is no compiler for the host, which the plug-in that counts needs.
    """
    with _prepared(program, board, input_sets, timeout) as prepared:
        build_plug_in(prepared.folder)
        functions = _function_lines(program, prepared.image)
        (prepared.folder / "functions.txt").write_text(functions, encoding="ascii")
        run = prepared.run("-plugin", "./count.so,functions=functions.txt,counts=counts.txt")
        counts = (prepared.folder / "counts.txt").read_text(encoding="ascii")
        return run, _read_counts(program, counts, len(input_sets))


def build_image(program: Program, board: Board) -> Image:
    """Build what `run_on_board` runs, to see how large it is.

    Raises:
        ModelError: if the program does not compile or does not fit the board.
        UsageError: if the board cannot run it, or the compiler is missing.
    """
    check_runs(board, program.core)
    check_file_names(program.sources)
    with tempfile.TemporaryDirectory(prefix="tbn-") as name:
        return _build(program, board, Path(name))


def run_on_host(
    program: Program, input_sets: Sequence[Arrays], *, timeout: float = 120.0
) -> tuple[Arrays, ...]:
    """Build a portable program and run it here, with this user's rights.

    Returns:
        For each set of inputs, the outputs in the program's order.

    Raises:
        ModelError: if the program does not compile, faults or takes longer than `timeout` seconds.
        UsageError: if it is not portable, or a compiler is missing.
    """
    if CORES[program.core].start_up is not None:
        raise UsageError(f"code for {program.core} does not run here; {boards_for(program.core)}")
    check_file_names(program.sources)
    content = input_bytes(program, input_sets)
    with tempfile.TemporaryDirectory(prefix="tbn-") as name:
        folder = Path(name)
        build_for_host({**program.sources, **harness_sources(program)}, folder)
        (folder / "inputs.bin").write_bytes(content)
        _run(["./image"], folder, timeout, "the host")
        return read_results(program, _results(folder), len(input_sets))[0]


@dataclass(frozen=True)
class _Prepared:
    """A program that is built, and its inputs, in a folder."""

    program: Program
    board: Board
    sets: int
    timeout: float
    folder: Path
    image: Image

    def run(self, *arguments: str) -> EmulatorRun:
        command = emulator_command(self.board, "image.elf")
        where = f"board {self.board.label}"
        _run([*command, *_QUIET, *_SANDBOX, *arguments], self.folder, self.timeout, where)
        outputs, stack = read_results(self.program, _results(self.folder), self.sets)
        if stack == _STACK_OVERRUN:
            raise ModelError(f"{where}: the stack has run into the static data")
        return EmulatorRun(outputs, stack, self.image)


@contextmanager
def _prepared(
    program: Program, board: Board, input_sets: Sequence[Arrays], timeout: float
) -> Generator[_Prepared]:
    check_runs(board, program.core)
    check_file_names(program.sources)
    emulator = emulator_command(board, "")[0]
    content = input_bytes(program, input_sets)
    if shutil.which(emulator) is None:
        raise UsageError(f"no {emulator}: install Debian's qemu-system-arm and qemu-system-misc")
    with tempfile.TemporaryDirectory(prefix="tbn-") as name:
        folder = Path(name)
        image = _build(program, board, folder)
        (folder / "inputs.bin").write_bytes(content)
        yield _Prepared(program, board, len(input_sets), timeout, folder, image)


def _run(command: Sequence[str], folder: Path, timeout: float, where: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603  # no shell
            command,
            cwd=folder,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{where}: the program did not end within {timeout:g} s") from error
    if done.returncode != 0:
        raise ModelError(f"{where}: {_reason(done.returncode, done.stderr)}")


def _reason(status: int, messages: str) -> str:
    if status in _REASONS:
        return f"the program failed: {_REASONS[status]}"
    lines = [line for line in messages.splitlines() if line.strip()]
    told = f": {clean(lines[0], 200)}" if lines else ""
    if status < 0:
        return f"the program was ended by signal {-status}{told}"
    if status >= _FAULT:
        return f"the program faulted, exception {status - _FAULT}"
    return f"the run ended with status {status}{told}"


def _results(folder: Path) -> bytes:
    path = folder / "outputs.bin"
    return path.read_bytes() if path.is_file() else b""


def _build(program: Program, board: Board, folder: Path) -> Image:
    sources = {**program.sources, **harness_sources(program)}
    return read_image(build_for_board(sources, program.core, board, folder))


def _called(program: Program) -> list[str]:
    """The function of each call that the executor makes; copies are calls of the C library."""
    names = [operator.function_name for operator in program.operators]
    return [name for name in names if name.startswith(_OPERATOR_PREFIX)]


def _function_lines(program: Program, image: Image) -> str:
    """What the plug-in has to know of the code, in the form it reads."""
    lines = [f"{image.function(name).address:x}" for name in _MARKERS]
    for name in (*_EXECUTOR_FUNCTIONS, *dict.fromkeys(_called(program))):
        function = image.function(name)
        kind = int(name not in _EXECUTOR_FUNCTIONS)
        lines.append(f"{function.address:x} {function.address + function.size:x} {kind}")
    return "\n".join([*lines, ""])


def _read_counts(program: Program, text: str, sets: int) -> ProgramCounts:
    executor, *calls = [Counts(*map(int, line.split())) for line in text.splitlines()]
    called = len(_called(program))
    if len(calls) != sets * called:
        raise ModelError(f"the code calls {len(calls)} operators in {sets} runs of {called}")
    sums = iter([sum(calls[index::called], Counts(0, 0, 0)) for index in range(called)])
    return ProgramCounts(
        executor,
        tuple(
            next(sums) if operator.function_name.startswith(_OPERATOR_PREFIX) else Counts(0, 0, 0)
            for operator in program.operators
        ),
    )
