"""`tbn-compile`: from a trained model to an artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tbn_compile.command_line import common
from tbn_compile.errors import ModelError, TbnError, UsageError, clean

if TYPE_CHECKING:
    from tbn_compile.pipeline import ProgressCallback
    from tbn_compile.reports import ModelReport
    from tbn_compile.validation import ValidationReport

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("tbn-compile", cls=common.ToolCommand)
def compile_tool(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="ONNX file.", show_default=False)
    ] = None,
    *,
    target: Annotated[str, typer.Option("--target", help="What to compile for.")] = "ort",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Artifact; by default beside MODEL.")
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Compare the artifact with MODEL in ONNX Runtime.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the JSON report there.")
    ] = None,
    as_json: common.Json = False,
    dump_phases: Annotated[
        Path | None,
        typer.Option("--dump-phases", metavar="DIR", help="Write the model after each phase."),
    ] = None,
    input_dim: common.InputDims = None,
    list_targets: Annotated[
        bool, typer.Option("--list-targets", help="Print the installed targets and exit.")
    ] = False,
    _verbose: common.Verbose = False,
    _version: common.Version = False,
) -> int:
    """Compile a Tiled Bit Network from ONNX.

    Exit status: 0 done, 1 validation failed, 2 bad usage or input.
    """
    if list_targets:
        return _list_targets(as_json)
    if model is None:
        raise UsageError("give the MODEL to compile")
    input_dims = common.parse_input_dims(input_dim)

    from tbn_compile.compiler import CompileOptions, compile_model  # noqa: PLC0415

    if validate:
        _require_library()
    common.refuse_overwriting(report, model, *([output] if output else []))
    with common.progress_bar() as progress:
        options = CompileOptions(input_dims, dump_phases, progress)
        compiled = compile_model(model, target, output, options)
        artifact = (output or model).parent / str(compiled.artifact)
        validation = _validate(model, artifact, input_dims, progress) if validate else None
    data = compiled.to_dict()
    if validation is not None:
        data["validation"] = validation.to_dict()
    if report is not None:
        common.refuse_overwriting(report, artifact)
        common.write_text(report, common.json_text(data))
    if as_json:
        common.print_json(data)
    else:
        _print(compiled, validation)
    if validation is None or validation.passed:
        return common.DONE
    kept = clean(artifact, 200)
    sys.stderr.write(f"tbn-compile: validation failed; {kept} was written all the same\n")
    return common.FAILED


def main() -> None:
    """Entry point."""
    app()


def _list_targets(as_json: bool) -> int:
    from tbn_compile.targets import find_target, target_names  # noqa: PLC0415

    described = {name: find_target(name).description for name in target_names()}
    if as_json:
        common.print_json({"schema_version": 1, "targets": described})
        return common.DONE
    for name, description in described.items():
        sys.stdout.write(f"{clean(name, 40)}  {clean(description)}\n")
    return common.DONE


def _require_library() -> None:
    """Fail before the work, not after it, where validation cannot run."""
    from tbn_compile.library import get_library_path  # noqa: PLC0415

    get_library_path()


def _validate(
    model: Path, artifact: Path, input_dims: dict[str, int], progress: ProgressCallback | None
) -> ValidationReport:
    from tbn_compile.validation import validate_model  # noqa: PLC0415

    try:
        return validate_model(model, artifact, input_dims=input_dims, progress=progress)
    except TbnError as error:
        raise ModelError(
            f"{error}; {clean(artifact.name, 80)} was written but not validated"
        ) from error


def _print(compiled: ModelReport, validation: ValidationReport | None) -> None:
    from tbn_compile import tables  # noqa: PLC0415

    common.print_report(tables.layers_table(compiled), tables.summary_lines(compiled))
    if validation is not None:
        common.print_report(
            tables.validation_table(validation), tables.validation_lines(validation)
        )
