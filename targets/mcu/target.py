"""Package a lowered graph as C for a microcontroller, in a Model Library Format archive."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.targets import Package, Request
from tbn_compile.targets.mcu.cores import CORES
from tbn_compile.targets.mcu.program import Optimization, Program

if TYPE_CHECKING:
    from tbn_compile.targets.mcu.boards.image import Sections
    from tbn_compile.targets.mcu.boards.profile import Board


class McuTarget:
    """One core; what it runs on is a board's matter.

    Args:
        name: of a core, see `CORES`.
    """

    suffix = ".tar"
    options = frozenset({"optimize", "board"})

    def __init__(self, name: str) -> None:
        self.core = CORES[name]
        self.description = (
            f"static C for {self.core.description}, as a Model Library Format archive"
        )

    def package(self, request: Request) -> Package:
        """Compile to C, check it against the board if there is one, and write the archive.

        Raises:
            ModelError: if the model holds what cannot be compiled, does not fit the board, or the
                archive cannot be written.
            UsageError: if an option has no valid meaning.
        """
        from tbn_compile.targets.mcu.archive.archive import write_archive  # noqa: PLC0415
        from tbn_compile.targets.mcu.boards.emulator import build_image  # noqa: PLC0415
        from tbn_compile.targets.mcu.boards.profile import check_runs, find_board  # noqa: PLC0415
        from tbn_compile.targets.mcu.compiler.compilation import compile_program  # noqa: PLC0415
        from tbn_compile.targets.mcu.compiler.graph_check import check_graph  # noqa: PLC0415
        from tbn_compile.targets.mcu.compiler.sample import make_sample  # noqa: PLC0415

        optimization = _optimization(request.optimize)
        board = find_board(request.board) if request.board else None
        if board is not None:
            check_runs(board, self.core.name)
        check_graph(request.graph)
        sample = make_sample(request.source, request.graph, request.input_dims)
        name = request.source.stem
        left: list[str] = []
        program = compile_program(request.graph, self.core, optimization, sample, name, left.append)
        with _naming_peak(program):
            sections = build_image(program, board).sections if board else None
        write_archive(program, request.output)
        details = dict(_details(program, board, sections)) | {"left_in_float": left}
        kept = tuple(f"A layer after integers computes in float: {clean(why)}" for why in left)
        return Package((request.output,), details, _lines(program, board, sections) + kept)


@contextmanager
def _naming_peak(program: Program) -> Generator[None]:
    try:
        yield
    except ModelError as error:
        peak = program.peak_operator
        if peak is None or "does not fit" not in str(error):
            raise
        raise ModelError(
            f"{error}; the workspace takes {program.workspace_bytes:,} bytes of RAM, most of it in "
            f"{clean(peak.layer, 60)}"
        ) from error


def _optimization(name: str | None) -> Optimization:
    known = get_args(Optimization)
    if name is None:
        return "balanced"
    if name not in known:
        raise UsageError(f"cannot optimize for {clean(name, 40)!r}; choose {', '.join(known)}")
    return name  # type: ignore[return-value]


def _details(program: Program, board: Board | None, sections: Sections | None) -> Mapping[str, Any]:
    peak = program.peak_operator
    details = {
        "core": program.core,
        "workspace_bytes": program.workspace_bytes,
        "io_bytes": program.io_bytes,
        "constant_bytes": program.constant_bytes,
        "weight_bytes": program.weight_bytes,
        "peak_operator": peak.layer if peak else None,
        "operators": [asdict(operator) for operator in program.operators],
    }
    if board is None or sections is None:
        return details
    return details | {
        "board": board.name,
        "flash_bytes": sections.flash,
        "ram_bytes": sections.ram,
        "board_flash_bytes": board.flash.size,
        "board_ram_bytes": board.ram.size,
    }


def _lines(program: Program, board: Board | None, sections: Sections | None) -> tuple[str, ...]:
    peak = program.peak_operator
    cause = f", most in {clean(peak.layer, 60)}" if peak and peak.live_bytes else ""
    lines = (
        f"RAM: workspace {program.workspace_bytes:,} B{cause}; inputs and outputs "
        f"{program.io_bytes:,} B",
        f"Flash: constants {program.constant_bytes:,} B, of which tiles and scales "
        f"{program.weight_bytes:,} B",
    )
    if board is None or sections is None:
        return lines
    return (
        *lines,
        f"On {board.label}: flash {sections.flash:,} of {board.flash.size:,} B, RAM "
        f"{sections.ram:,} of {board.ram.size:,} B",
    )
