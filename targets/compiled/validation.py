"""Compare a compiled library with its original model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tbn_compile.pipeline import ProgressCallback
from tbn_compile.sessions import CheckedModel, check_model
from tbn_compile.targets.compiled.loader import load
from tbn_compile.validation import (
    TOLERANCES,
    ValidationReport,
    check_options,
    compare_outputs,
    reference_runs,
    report_step,
)


def validate_library(
    model: str | Path,
    artifact: str | Path,
    *,
    inputs: str | Path | None = None,
    seed: int = 0,
    input_sets: int = 3,
    tolerance: float | None = None,
    input_dims: Mapping[str, int] | None = None,
    progress: ProgressCallback | None = None,
) -> ValidationReport:
    """Compare every output of a library with ONNX Runtime's for the original.

    The library's code runs in this process, with this user's rights.

    Args:
        model: the original `.onnx` file.
        artifact: what target llvm or cuda made of it.
        inputs: an `.npz` file with a value per input, in place of random ones.
        seed: of the first random set of inputs; the next ones count up.
        input_sets: how many random sets.
        tolerance: greatest error relative to the largest magnitude, for every output; by default
            that of `validation.TOLERANCES` for the coarsest type in the model, and 0 for integers.
        input_dims: extents for symbolic dimensions; others are 1, or as the artifact pins them.
        progress: called as steps are done, or None.

    Raises:
        ModelError: if a file is unsafe or invalid, does not suit this machine, fails, or has other
            inputs or outputs than the model.
        UsageError: if an option does not fit the model.
    """
    check_options(input_sets, tolerance)
    original, compiled = check_model(model), load(artifact)
    manifest = compiled.manifest
    shapes = {spec.name: spec.shape for spec in manifest.inputs}
    outputs = [spec.name for spec in manifest.outputs]
    options = (inputs, seed, input_sets, input_dims)
    sets, references = reference_runs(original, Path(artifact).name, shapes, outputs, *options)
    report_step(progress, 1, 2)
    results = [compiled.run(feeds) for feeds in sets]
    report_step(progress, 2, 2)
    coarsest = _coarsest_tolerance(original)

    def allowed(dtype: str) -> float:
        if tolerance is not None:
            return tolerance
        return coarsest if dtype in TOLERANCES else 0.0

    return ValidationReport(
        model=original.path.name,
        artifact=Path(artifact).name,
        outputs=tuple(compare_outputs(references, results, manifest.target, allowed)),
        input_sets=len(sets),
        seed=seed if inputs is None else None,
    )


def _coarsest_tolerance(model: CheckedModel) -> float:
    """That of the coarsest type among the model's tensors: what it rounds to on its way shows."""
    values = [
        *model.graph.graph.initializers.values(),
        *model.inputs,
        *model.graph.graph.outputs,
    ]
    names = [value.dtype.numpy().name for value in values if value.dtype is not None]
    return max([TOLERANCES["float32"], *(TOLERANCES.get(name, 0.0) for name in names)])
