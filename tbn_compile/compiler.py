"""Compile and inspect models: the first two verbs of the public API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tbn_compile.errors import UsageError, clean
from tbn_compile.loading import total_bytes
from tbn_compile.pipeline import Pipeline, ProgressCallback
from tbn_compile.reports import ModelReport, layer_reports
from tbn_compile.targets import Request, Tuning, find_target

_TARGET_OPTIONS = ("optimize", "board", "cpu", "cuda_arch", "tuning")
"""Those that not every target understands."""


@dataclass(frozen=True)
class CompileOptions:
    """Options of a compilation.

    Attributes:
        input_dims: extents for symbolic dimensions of the model's inputs.
        dump_phases: folder that receives the model after each phase, or None.
        progress: called as long phases go on, or None.
        optimize: "ram", "balanced" or "time"; microcontroller targets alone understand it.
        board: name or TOML file of a board that the artifact must fit; likewise.
        cpu: LLVM's name of the processor to compile for; target llvm alone understands it.
        cuda_arch: compute capabilities such as "90"; target cuda alone understands them.
        tuning: schedules to search or to use; targets llvm and cuda understand it.
    """

    input_dims: Mapping[str, int] | None = None
    dump_phases: Path | None = None
    progress: ProgressCallback | None = None
    optimize: str | None = None
    board: str | None = None
    cpu: str | None = None
    cuda_arch: tuple[str, ...] | None = None
    tuning: Tuning | None = None


def compile_model(
    model: str | Path,
    target: str = "ort",
    output: str | Path | None = None,
    options: CompileOptions | None = None,
) -> ModelReport:
    """Compile an ONNX file.

    Args:
        model: an `.onnx` file of a trained network.
        target: the name of an installed target, see `target_names`.
        output: where the artifact goes; by default beside the model, named after it. It is
            replaced only once the new one is complete.
        options: see `CompileOptions`.

    Returns:
        What became of each layer, sizes in bytes and seconds per phase.

    Raises:
        ModelError: if the model is missing, unsafe or invalid, or the artifact cannot be written.
        UsageError: if the target or an option does not exist.
    """
    source, options = Path(model), options or CompileOptions()
    packager = find_target(target)
    given = {name: getattr(options, name) for name in _TARGET_OPTIONS}
    for name, value in given.items():
        if value is not None and name not in packager.options:
            raise UsageError(f"target {target} has no option {name!r}; leave it out")
    artifact = Path(output) if output else source.with_name(source.stem + packager.suffix)
    if artifact.exists() and not artifact.is_file():
        kind = "a folder" if artifact.is_dir() else "no regular file"
        raise UsageError(f"{clean(artifact, 200)} is {kind}; choose another output file")
    pipeline = Pipeline(source, options.dump_phases, options.progress)
    graph = pipeline.run(options.input_dims or {})
    layers = layer_reports(pipeline.finder.layers)
    original = total_bytes(pipeline.files)
    beside = artifact.with_name(f"{artifact.name}.data")
    if not pipeline.files.isdisjoint({artifact.resolve(), beside.resolve()}):
        raise UsageError(f"{clean(artifact, 200)} would replace the model; choose another output")
    request = Request(
        graph, source, artifact, options.input_dims or {}, progress=options.progress, **given
    )
    package = pipeline.package(lambda: packager.package(request))
    return ModelReport(
        model=source.name,
        layers=layers,
        original_file_bytes=original,
        target=target,
        artifact=artifact.name,
        artifact_bytes=total_bytes(package.files),
        phases=pipeline.phases,
        details=package.details,
        details_lines=package.lines,
    )


def inspect_model(model: str | Path, options: CompileOptions | None = None) -> ModelReport:
    """Tell what `compile_model` would lower, and why not; nothing is written.

    Args:
        model: an `.onnx` file.
        options: see `CompileOptions`.

    Raises:
        ModelError: if the model is missing, unsafe or invalid.
        UsageError: if an option does not fit the model.
    """
    source, options = Path(model), options or CompileOptions()
    pipeline = Pipeline(source, options.dump_phases, options.progress)
    pipeline.run(options.input_dims or {})
    return ModelReport(
        model=source.name,
        layers=layer_reports(pipeline.finder.layers),
        original_file_bytes=total_bytes(pipeline.files),
        phases=pipeline.phases,
    )
