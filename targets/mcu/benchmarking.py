"""Count what a program does on an emulated board, beside the same network without tiles."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tbn_compile.compiler import CompileOptions, compile_model
from tbn_compile.errors import ModelError
from tbn_compile.pipeline import ProgressCallback
from tbn_compile.targets.mcu.archive.archive import read_program
from tbn_compile.targets.mcu.boards.emulator import Counts, EmulatorRun, count_on_board
from tbn_compile.targets.mcu.boards.image import Sections
from tbn_compile.targets.mcu.boards.profile import Board, check_runs, find_board
from tbn_compile.targets.mcu.compiler.dense import compile_dense_program
from tbn_compile.targets.mcu.cores import CORES
from tbn_compile.targets.mcu.program import Program

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class OperatorReport:
    """One operator of a program.

    Attributes:
        layer: what it computes.
        counts: of one inference.
        code_bytes: of its function, which other operators may share; 0 for a copy.
        workspace_bytes: of the static workspace in use while it runs.
    """

    layer: str
    counts: Counts
    code_bytes: int
    workspace_bytes: int


@dataclass(frozen=True)
class ProgramReport:
    """What a program needs on the board.

    Attributes:
        name: "tiled" or "dense".
        counts: of one inference.
        executor: the part of `counts` outside of operators.
        stack_bytes: the most that was in use.
        sections: bytes of flash and RAM.
        operators: in the order of execution.
    """

    name: str
    counts: Counts
    executor: Counts
    stack_bytes: int
    sections: Sections
    operators: tuple[OperatorReport, ...]


@dataclass(frozen=True)
class BoardReport:
    """A model on a board.

    Attributes:
        model: the file's name.
        board, core: names.
        programs: the tiled one, and the dense one unless it does not run there.
        dense_problem: why it does not, or None.
    """

    model: str
    board: str
    core: str
    programs: tuple[ProgramReport, ...]
    dense_problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data, with `schema_version`."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


def benchmark_on_board(
    model: str | Path,
    archive: str | Path | None,
    board: str,
    *,
    input_dims: Mapping[str, int] | None = None,
    progress: ProgressCallback | None = None,
) -> BoardReport:
    """Count the instructions, loads and stores of one inference, and measure stack, flash and RAM.

    The figures are those of the archive's own sample, and the same in every run.

    Args:
        model: the original `.onnx` file.
        archive: what a microcontroller target made of it; None compiles it for the board's core
            into a temporary folder.
        board: see `find_board`.
        input_dims: extents for symbolic dimensions.
        progress: called as steps are done, or None.

    Raises:
        ModelError: if a file is unsafe or invalid, or the program does not compile, does not fit
            the board, or fails there.
        UsageError: if the board does not run the archive's code, or a tool is missing.
    """
    place = find_board(board)
    with _archive_file(Path(model), archive, place, input_dims) as path:
        program = read_program(path)
    check_runs(place, program.core)
    programs = [_measure("tiled", program, place)]
    _report(progress, 1)
    problem = None
    try:
        dense = compile_dense_program(
            Path(model), CORES[program.core], "balanced", input_dims or {}
        )
        programs.append(_measure("dense", dense, place))
    except ModelError as error:  # most boards are too small for it, which is what tiles are for
        problem = str(error)
    _report(progress, 2)
    return BoardReport(Path(model).name, place.name, program.core, tuple(programs), problem)


@contextmanager
def _archive_file(
    model: Path, archive: str | Path | None, board: Board, input_dims: Mapping[str, int] | None
) -> Generator[Path]:
    if archive is not None:
        yield Path(archive)
        return
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"{model.stem[:80]}.tar"
        compile_model(model, board.core, output, CompileOptions(input_dims))
        yield output


def _measure(name: str, program: Program, board: Board) -> ProgramReport:
    run, counts = count_on_board(program, board, [program.sample.inputs])
    return ProgramReport(
        name=name,
        counts=counts.total,
        executor=counts.executor,
        stack_bytes=run.stack_bytes,
        sections=run.image.sections,
        operators=tuple(
            OperatorReport(
                layer=operator.layer,
                counts=operator_counts,
                code_bytes=_code_bytes(run, operator.function_name),
                workspace_bytes=operator.live_bytes,
            )
            for operator, operator_counts in zip(program.operators, counts.operators, strict=True)
        ),
    )


def _code_bytes(run: EmulatorRun, function: str) -> int:
    return run.image.functions[function].size if function in run.image.functions else 0


def _report(progress: ProgressCallback | None, done: int) -> None:
    if progress is not None:
        progress("benchmark", done, 2)
