"""`tbn-compile`: from a trained model to an artifact."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tbn_compile.command_line import common
from tbn_compile.errors import ModelError, TbnError, UsageError, clean

if TYPE_CHECKING:
    from tbn_compile.pipeline import ProgressCallback
    from tbn_compile.reports import ModelReport
    from tbn_compile.validation import ValidationReport

_TEMPLATE = "cmake"

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
    optimize: Annotated[
        str | None,
        typer.Option(
            "-O",
            "--optimize",
            metavar="ram|balanced|time",
            help="What a microcontroller's kernels spend; by default balanced.",
        ),
    ] = None,
    board: Annotated[
        str | None,
        typer.Option(
            "--board",
            metavar="NAME|FILE.toml",
            help="Refuse what does not fit this board; validate and write projects for it.",
        ),
    ] = None,
    cpu: Annotated[
        str | None,
        typer.Option(
            "--cpu",
            metavar="NAME",
            help="LLVM's name of the processor for target llvm, such as x86-64-v3; by default "
            "this machine's.",
        ),
    ] = None,
    cuda_arch: Annotated[
        str | None,
        typer.Option(
            "--cuda-arch",
            metavar="LIST",
            help="Compute capabilities for target cuda, such as 80,90; by default this machine's "
            "GPU, or else 80,86,89,90.",
        ),
    ] = None,
    tune: Annotated[
        int,
        typer.Option(
            "--tune",
            metavar="TRIALS",
            min=0,
            help="Search schedules for what is no tiled layer, by so many measurements.",
        ),
    ] = 0,
    tuning_file: Annotated[
        Path | None,
        typer.Option(
            "--tuning-file", metavar="FILE", help="Where schedules that were found are kept."
        ),
    ] = None,
    rpc_tracker: Annotated[
        str | None,
        typer.Option(
            "--rpc-tracker",
            metavar="HOST:PORT/KEY",
            help="TVM's tracker of remote devices to measure on; by default this machine.",
        ),
    ] = None,
    emit_project: Annotated[
        Path | None,
        typer.Option("--emit-project", metavar="DIR", help="Also write a project that builds."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            metavar="NAME",
            help="Of the project: cmake (by default), qemu, arduino or zephyr.",
        ),
    ] = None,
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
    from tbn_compile.targets import Tuning  # noqa: PLC0415

    if validate:
        _check_validation(target, output)
    if template is not None and emit_project is None:
        raise UsageError("--template belongs to --emit-project DIR; give both or neither")
    if tuning_file is None and (tune or rpc_tracker is not None):
        raise UsageError("--tune and --rpc-tracker need --tuning-file FILE for what they find")
    if emit_project is not None:
        _check_project(target, emit_project, template or _TEMPLATE, board)
    common.refuse_overwriting(report, model, *([output] if output else []))
    with common.progress_bar() as progress:
        options = CompileOptions(
            input_dims,
            dump_phases,
            progress,
            optimize,
            board,
            cpu,
            tuple(name.strip() for name in cuda_arch.split(",")) if cuda_arch is not None else None,
            Tuning(tuning_file, tune, rpc_tracker) if tuning_file is not None else None,
        )
        compiled = compile_model(model, target, output, options)
        artifact = (output or model).parent / str(compiled.artifact)
        validate_artifact = partial(_validate, model, artifact, board, input_dims, progress)
        validation = validate_artifact() if validate else None
    if emit_project is not None:
        _emit_project(artifact, emit_project, template or _TEMPLATE, board)
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


def _check_validation(target: str, output: Path | None) -> None:
    """Refuse, before anything is compiled, what could not be validated afterwards."""
    from tbn_compile.targets import find_target  # noqa: PLC0415

    if target == "ort":
        _require_library()
        return
    suffix = find_target(target).suffix
    if output is not None and output.suffix != suffix:
        raise UsageError(
            f"{clean(output.name, 80)}: validation knows artifacts of target {target} by {suffix}; "
            f"name the output {clean(output.stem, 80)}{suffix}"
        )


def _validate(
    model: Path,
    artifact: Path,
    board: str | None,
    input_dims: dict[str, int],
    progress: ProgressCallback | None,
) -> ValidationReport:
    from tbn_compile.command_line.validate import validator  # noqa: PLC0415

    try:
        return validator(artifact, board)(model, artifact, input_dims=input_dims, progress=progress)
    except TbnError as error:
        raise ModelError(
            f"{error}; {clean(artifact.name, 80)} was written but not validated"
        ) from error


def _check_project(target: str, directory: Path, template: str, board: str | None) -> None:
    """Fail before the work, not after it, where no project can be written."""
    from tbn_compile.targets.mcu.boards.profile import find_board  # noqa: PLC0415
    from tbn_compile.targets.mcu.cores import CORES  # noqa: PLC0415
    from tbn_compile.targets.mcu.projects.project import check_project  # noqa: PLC0415

    if target not in CORES:
        known = ", ".join(CORES)
        raise UsageError(f"--emit-project needs a microcontroller for a target: {known}")
    check_project(target, directory, template, find_board(board) if board else None)


def _emit_project(artifact: Path, directory: Path, template: str, board: str | None) -> None:
    from tbn_compile.targets.mcu.archive.archive import read_program  # noqa: PLC0415
    from tbn_compile.targets.mcu.boards.profile import find_board  # noqa: PLC0415
    from tbn_compile.targets.mcu.projects.project import emit_project  # noqa: PLC0415

    program = read_program(artifact)
    emit_project(program, directory, template, find_board(board) if board else None)


def _print(compiled: ModelReport, validation: ValidationReport | None) -> None:
    from tbn_compile import tables  # noqa: PLC0415

    common.print_report(tables.layers_table(compiled), tables.summary_lines(compiled))
    if validation is not None:
        common.print_report(
            tables.validation_table(validation), tables.validation_lines(validation)
        )
