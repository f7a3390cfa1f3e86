"""`tbn-inspect`: what compiling would do to each layer, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tbn_compile.command_line import common

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("tbn-inspect", cls=common.ToolCommand)
def inspect_tool(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file.")],
    *,
    as_json: common.Json = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write one line per layer there.")
    ] = None,
    input_dim: common.InputDims = None,
    _verbose: common.Verbose = False,
    _version: common.Version = False,
) -> int:
    """Show what compiling would do to each layer of a model, and why not.

    Exit status: 0 done, 2 bad usage or input.
    """
    input_dims = common.parse_input_dims(input_dim)
    common.refuse_overwriting(csv, model)

    from tbn_compile import tables  # noqa: PLC0415
    from tbn_compile.compiler import CompileOptions, inspect_model  # noqa: PLC0415

    with common.progress_bar() as progress:
        report = inspect_model(model, CompileOptions(input_dims, progress=progress))
    if csv is not None:
        common.write_text(csv, tables.layers_csv(report))
    if as_json:
        common.print_json(report.to_dict())
    else:
        common.print_report(tables.layers_table(report), tables.summary_lines(report))
    return common.DONE


def main() -> None:
    """Entry point."""
    app()
