"""`tbn-validate`: does an artifact compute what its model computes?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tbn_compile.command_line import common

if TYPE_CHECKING:
    from tbn_compile.validation import ValidationReport

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("tbn-validate", cls=common.ToolCommand)
def validate_tool(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Original ONNX file.")],
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Compiled from MODEL.")],
    *,
    as_json: common.Json = False,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE.npz", help="Inputs in place of random ones."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random inputs.")] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Greatest error, as a share of the largest output; by default 2e-5 for float32 "
            "(1e-5 for an archive), 4e-3 for float16, 2e-2 for bfloat16 and 0 for integers.",
        ),
    ] = None,
    board: common.Board = None,
    input_dim: common.InputDims = None,
    _verbose: common.Verbose = False,
    _version: common.Version = False,
) -> int:
    """Compare an artifact with its model in ONNX Runtime.

    An ONNX artifact runs in ONNX Runtime, with and without our library; a shared library (.so) runs
    by itself; an archive for microcontrollers is built and runs on an emulated board, or on this
    machine if its code is portable.

    Exit status: 0 passed, 1 failed, 2 bad usage or input.
    """
    input_dims = common.parse_input_dims(input_dim)

    with common.progress_bar() as progress:
        report = validator(artifact, board)(
            model,
            artifact,
            inputs=inputs,
            seed=seed,
            tolerance=tolerance,
            input_dims=input_dims,
            progress=progress,
        )
    if as_json:
        common.print_json(report.to_dict())
    else:
        from tbn_compile import tables  # noqa: PLC0415

        common.print_report(tables.validation_table(report), tables.validation_lines(report))
    return common.DONE if report.passed else common.FAILED


def main() -> None:
    """Entry point."""
    app()


def validator(artifact: Path, board: str | None) -> Callable[..., ValidationReport]:
    """What validates that kind of artifact."""
    if board is None and artifact.suffix == ".so":
        from tbn_compile.targets.compiled.validation import validate_library  # noqa: PLC0415

        return validate_library
    if board is None and artifact.suffix != ".tar":
        from tbn_compile.validation import validate_model  # noqa: PLC0415

        return validate_model
    from tbn_compile.targets.mcu.validation import validate_archive  # noqa: PLC0415

    return partial(validate_archive, board=board)
