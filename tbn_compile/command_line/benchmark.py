"""`tbn-benchmark`: how fast an artifact is beside its model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tbn_compile.command_line import common
from tbn_compile.errors import UsageError

if TYPE_CHECKING:
    from tbn_compile.benchmarking import BenchmarkReport

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("tbn-benchmark", cls=common.ToolCommand)
def benchmark_tool(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Original ONNX file.")],
    artifact: Annotated[
        Path | None,
        typer.Argument(metavar="ARTIFACT", help="By default compiled now.", show_default=False),
    ] = None,
    *,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of an operator.")] = 1,
    runs: Annotated[int, typer.Option("--runs", min=1, help="The most rounds.")] = 200,
    seconds: Annotated[float, typer.Option("--seconds", help="Start no round after these.")] = 10.0,
    stock: Annotated[
        bool, typer.Option("--stock", help="Also time the artifact without our library.")
    ] = False,
    board: common.Board = None,
    as_json: common.Json = False,
    input_dim: common.InputDims = None,
    _verbose: common.Verbose = False,
    _version: common.Version = False,
) -> int:
    """Time an artifact beside its model in ONNX Runtime: an ONNX file with our library, or a .so.

    With --board: count what an archive's program executes on the emulated board, beside the same
    network without tiles.

    Exit status: 0 done, 2 bad usage or input.
    """
    input_dims = common.parse_input_dims(input_dim)
    if board is not None:
        if stock or (threads, runs, seconds) != (1, 200, 10.0):
            raise UsageError("--stock, --threads, --runs and --seconds do not go with --board")
        return _benchmark_on_board(model, artifact, board, input_dims, as_json)

    benchmark = _benchmark(artifact, stock)
    with common.progress_bar() as progress:
        report = benchmark(
            model,
            artifact,
            threads=threads,
            runs=runs,
            seconds=seconds,
            input_dims=input_dims,
            progress=progress,
        )
    if as_json:
        common.print_json(report.to_dict())
    else:
        from tbn_compile import tables  # noqa: PLC0415

        common.print_report(tables.benchmark_table(report), tables.benchmark_lines(report))
    return common.DONE


def _benchmark(artifact: Path | None, stock: bool) -> Callable[..., BenchmarkReport]:
    """What times that kind of artifact."""
    if artifact is None or artifact.suffix != ".so":
        from tbn_compile.benchmarking import benchmark_model  # noqa: PLC0415

        return partial(benchmark_model, stock=stock)
    if stock:
        raise UsageError("--stock goes with an ONNX artifact; leave it out")
    from tbn_compile.targets.compiled.benchmarking import benchmark_library  # noqa: PLC0415

    return benchmark_library


def _benchmark_on_board(
    model: Path, archive: Path | None, board: str, input_dims: dict[str, int], as_json: bool
) -> int:
    from tbn_compile.targets.mcu.benchmarking import benchmark_on_board  # noqa: PLC0415

    with common.progress_bar() as progress:
        report = benchmark_on_board(model, archive, board, input_dims=input_dims, progress=progress)
    if as_json:
        common.print_json(report.to_dict())
        return common.DONE
    from tbn_compile import tables  # noqa: PLC0415

    common.print_report(tables.operators_table(report), [])
    common.print_report(tables.programs_table(report), tables.board_lines(report))
    return common.DONE


def main() -> None:
    """Entry point."""
    app()
