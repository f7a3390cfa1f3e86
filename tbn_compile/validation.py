"""Compare a compiled artifact with its original, both run by ONNX Runtime."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.library import get_library_path
from tbn_compile.passes.onnx.tiled_nodes import tiled_nodes
from tbn_compile.pipeline import ProgressCallback
from tbn_compile.sessions import (
    Arrays,
    CheckedModel,
    Session,
    check_model,
    known_dims,
    random_inputs,
    read_inputs,
)

SCHEMA_VERSION = 1

AllowedError: TypeAlias = Callable[[str], float]
"""Gives the greatest error allowed for an element type, relative to the largest magnitude."""

TOLERANCES = {"float64": 2e-5, "float32": 2e-5, "float16": 4e-3, "bfloat16": 2e-2}
"""Greatest error by element type, as a share of the reference's largest magnitude."""


@dataclass(frozen=True)
class Comparison:
    """One tensor of the artifact beside the original's, over all input sets.

    Errors are taken where both are finite; NaN if there is nothing to compare.

    Attributes:
        tensor: its name.
        runtime: what ran the artifact: "stock" is ONNX Runtime without our library, "library" with
            it, "host" this machine, "board NAME" an emulated board.
        dtype: element type of the original's.
        tolerance: the greatest error allowed, relative to the largest magnitude.
        max_absolute: largest |difference|.
        max_to_largest: `max_absolute` over the largest magnitude of the original's elements.
        max_relative: largest |difference| / |original|, over elements that are not zero.
        max_ulp: most floating-point numbers between two elements; None if they are no floats.
        cosine: cosine of the angle between both, all sets in one vector.
        non_finite_mismatches: elements that are NaN or infinite in one only, or differ there.
        mismatch: how type or shape differ, or None.
    """

    tensor: str
    runtime: str
    dtype: str
    tolerance: float
    max_absolute: float = math.nan
    max_to_largest: float = math.nan
    max_relative: float = math.nan
    max_ulp: int | None = None
    cosine: float = math.nan
    non_finite_mismatches: int = 0
    mismatch: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        if self.mismatch is not None or self.non_finite_mismatches:
            return False
        return self.max_to_largest <= self.tolerance


@dataclass(frozen=True)
class ValidationReport:
    """The verdict on an artifact.

    Attributes:
        model, artifact: the files' names.
        outputs: every output in every runtime.
        input_sets: how many sets of inputs were run.
        seed: of the first random set; None if the inputs came from a file.
        first_divergence: the first tensor, in the original's order, that both graphs compute under
            one name and that is off by more than the tolerance; None if all is well or if only
            outputs of other names are off.
        search_problem: why the search for it failed, or None.
    """

    model: str
    artifact: str
    outputs: tuple[Comparison, ...]
    input_sets: int
    seed: int | None
    first_divergence: str | None = None
    search_problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every output is right in every runtime."""
        return all(output.passed for output in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data, with `schema_version`; null where not finite."""
        outputs = [
            {**_finite(dataclasses.asdict(output)), "passed": output.passed}
            for output in self.outputs
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            **dataclasses.asdict(self),
            "outputs": outputs,
        }


def validate_model(
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
    """Compare every output of an artifact with the original's in stock ONNX Runtime.

    The artifact runs twice: as any runtime would run it, and with our library.

    Args:
        model: the original `.onnx` file.
        artifact: what target `ort` made of it.
        inputs: an `.npz` file with a value per input, in place of random ones.
        seed: of the first random set of inputs; the next ones count up.
        input_sets: how many random sets.
        tolerance: greatest error relative to the largest magnitude, for every output; by default
            that of `TOLERANCES`, and 0 for integers.
        input_dims: extents for symbolic dimensions; others are 1, or as the artifact pins them.
        progress: called as the runs go on, or None.

    Raises:
        ModelError: if a file is unsafe or invalid, ONNX Runtime cannot run it, or the artifact has
            other inputs or outputs than the original.
        UsageError: if our library is not installed, or an option does not fit the model.
    """
    check_options(input_sets, tolerance)
    runtimes: dict[str, str | None] = {"stock": None, "library": get_library_path()}
    original, compiled = check_model(model), check_model(artifact)
    check_interface(compiled.name, original, compiled.input_names, compiled.output_names)
    dims = known_dims(original, compiled.input_shapes, input_dims or {})
    sets = make_input_sets(original, inputs, seed, input_sets, dims)
    steps = _Steps(progress, len(sets) * (1 + len(runtimes)))
    allowed = _Allowed(compiled, tolerance).of
    references = steps.run(Session(original), sets)
    outputs = [
        comparison
        for runtime, library in runtimes.items()
        for comparison in compare_outputs(
            references, steps.run(Session(compiled, library), sets), runtime, allowed
        )
    ]
    report = ValidationReport(
        model=original.path.name,
        artifact=compiled.path.name,
        outputs=tuple(outputs),
        input_sets=len(sets),
        seed=seed if inputs is None else None,
    )
    if report.passed:
        return report
    failed = next(output for output in outputs if not output.passed)
    library = runtimes[failed.runtime]
    try:
        found = _first_divergence(original, compiled, library, sets, allowed)
    except ModelError as error:  # the verdict stands, whatever becomes of the search
        return dataclasses.replace(report, search_problem=str(error))
    return dataclasses.replace(report, first_divergence=found)


def check_options(input_sets: int, tolerance: float | None) -> None:
    """Refuse options of a validation that have no meaning.

    Raises:
        UsageError: with the mend.
    """
    if input_sets < 1 or (tolerance is not None and not tolerance >= 0):
        raise UsageError("give one input set or more, and a tolerance of 0 or more")


def check_interface(
    artifact: str, original: CheckedModel, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Refuse an artifact, told by its printable name, with other inputs or outputs than the model.

    Raises:
        ModelError: with the names.
    """
    for kind, mine, theirs in (
        ("inputs", sorted(original.input_names), sorted(inputs)),
        ("outputs", original.output_names, list(outputs)),
    ):
        if mine != theirs:
            raise ModelError(
                f"{artifact} was not compiled from {original.name}: its {kind} are "
                f"{clean(', '.join(theirs), 80)}, not {clean(', '.join(mine), 80)}"
            )


def make_input_sets(
    original: CheckedModel,
    inputs: str | Path | None,
    seed: int,
    input_sets: int,
    input_dims: Mapping[str, int],
) -> list[Arrays]:
    """The inputs of a file, or random ones.

    Args:
        original: the model that they are for.
        inputs: an `.npz` file, or None.
        seed: of the first random set; the next ones count up.
        input_sets: how many random sets.
        input_dims: extents of symbolic dimensions.

    Raises:
        ModelError: if no inputs can be made up.
        UsageError: if the file does not fit the model.
    """
    if inputs is not None:
        return [read_inputs(original, inputs)]
    return [random_inputs(original, seed + index, input_dims) for index in range(input_sets)]


def reference_runs(
    original: CheckedModel,
    artifact: str,
    shapes: Mapping[str, Sequence[Any]],
    outputs: Sequence[str],
    inputs: str | Path | None,
    seed: int,
    input_sets: int,
    input_dims: Mapping[str, int] | None,
) -> tuple[list[Arrays], list[Arrays]]:
    """Inputs that suit a model and an artifact, and what ONNX Runtime makes of them.

    Args:
        original: the model.
        artifact: its printable name.
        shapes: of the artifact's inputs, by name.
        outputs: the names of its outputs.
        inputs: an `.npz` file, or None.
        seed: of the first random set.
        input_sets: how many random sets.
        input_dims: extents that were given for symbolic dimensions, or None.

    Raises:
        ModelError: if the two have other inputs or outputs, or the model fails.
        UsageError: if an option does not fit the model.
    """
    check_interface(artifact, original, list(shapes), outputs)
    dims = known_dims(original, shapes, input_dims or {})
    sets = make_input_sets(original, inputs, seed, input_sets, dims)
    session = Session(original)
    return sets, [session.run(feeds) for feeds in sets]


def report_step(progress: ProgressCallback | None, done: int, total: int) -> None:
    """Tell a callback, if there is one, how far a validation is."""
    if progress is not None:
        progress("validate", done, total)


def compare_outputs(
    references: Sequence[Arrays], results: Sequence[Arrays], runtime: str, allowed: AllowedError
) -> list[Comparison]:
    """Compare every output over all input sets.

    Args:
        references: what the original gives for each set.
        results: what the artifact gives.
        runtime: what ran the artifact.
        allowed: the tolerance.
    """
    return [
        _compare(
            name,
            runtime,
            allowed,
            [arrays[name] for arrays in references],
            [arrays[name] for arrays in results],
        )
        for name in references[0]
    ]


@dataclass
class _Steps:
    """Counts runs for the progress callback."""

    progress: ProgressCallback | None
    total: int
    done: int = 0

    def run(self, session: Session, sets: Sequence[Arrays]) -> list[Arrays]:
        results: list[Arrays] = []
        for feeds in sets:
            results.append(session.run(feeds))
            self.done += 1
            report_step(self.progress, self.done, self.total)
        return results


class _Allowed:
    """The tolerance of a tensor: that of its type, or of a coarser one that tiled nodes work in."""

    def __init__(self, compiled: CheckedModel, tolerance: float | None) -> None:
        kinds = [node.inputs[2].dtype for node in tiled_nodes(compiled.graph) if node.inputs[2]]
        names = [kind.numpy().name for kind in kinds if kind is not None]
        self._least = max((TOLERANCES.get(name, 0.0) for name in names), default=0.0)
        self._fixed = tolerance

    def of(self, dtype: str) -> float:
        if self._fixed is not None:
            return self._fixed
        return max(TOLERANCES[dtype], self._least) if dtype in TOLERANCES else 0.0


def _compare(
    name: str,
    runtime: str,
    allowed: AllowedError,
    references: Sequence[Any],
    results: Sequence[Any],
) -> Comparison:
    if not all(isinstance(array, np.ndarray) for array in (*references, *results)):
        raise ModelError(f"output {name!r} is no tensor; only tensors can be compared")
    dtype = str(references[0].dtype)
    comparison = Comparison(name, runtime, dtype, allowed(dtype))
    for reference, result in zip(references, results, strict=True):
        if (reference.shape, reference.dtype) != (result.shape, result.dtype):
            told = f"{result.dtype}{list(result.shape)}, not {dtype}{list(reference.shape)}"
            return dataclasses.replace(comparison, mismatch=told)
    reference = np.concatenate([array.reshape(-1) for array in references])
    result = np.concatenate([array.reshape(-1) for array in results])
    return dataclasses.replace(comparison, **_errors(reference, result))


def _errors(reference: npt.NDArray[Any], result: npt.NDArray[Any]) -> dict[str, Any]:
    """The fields of `Comparison` for two arrays of one axis and the same length and type."""
    if reference.dtype.kind not in "fiub":  # strings: equal or not
        result = (reference != result).astype(np.int64)
        reference = np.zeros_like(result)
    exact, computed = reference.astype(np.float64), result.astype(np.float64)
    finite = np.isfinite(exact) & np.isfinite(computed)
    same = (exact == computed) | (np.isnan(exact) & np.isnan(computed))
    ulp = _most_ulp(reference[finite], result[finite])
    exact, computed = exact[finite], computed[finite]
    differences = np.abs(exact - computed)
    largest = float(np.abs(exact).max(initial=0.0))
    error = float(differences.max(initial=0.0))
    nonzero = exact != 0
    return {
        "max_absolute": error,
        "max_to_largest": _ratio(error, largest),
        "max_relative": float((differences[nonzero] / np.abs(exact[nonzero])).max(initial=0.0)),
        "max_ulp": ulp,
        "cosine": _cosine(exact, computed),
        "non_finite_mismatches": int(np.count_nonzero(~finite & ~same)),
    }


def _ratio(error: float, largest: float) -> float:
    if error == 0:
        return 0.0
    return error / largest if largest > 0 else math.inf


def _most_ulp(reference: npt.NDArray[Any], result: npt.NDArray[Any]) -> int | None:
    if reference.dtype.kind != "f":
        return None
    first, second = _ordered(reference), _ordered(result)
    above, below = np.maximum(first, second), np.minimum(first, second)
    distance = above.astype(np.uint64) - below.astype(np.uint64)  # wraps to the true distance
    return int(distance.max(initial=0))


def _ordered(array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Integers that count floating-point numbers in ascending order; both zeros are 0."""
    width = 8 * array.dtype.itemsize
    bits = array.view(f"i{array.dtype.itemsize}").astype(np.int64)
    return np.where(bits < 0, -(2 ** (width - 1)) - bits, bits)


def _cosine(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    if np.array_equal(first, second):
        return 1.0
    scales = [float(np.abs(array).max()) for array in (first, second)]
    if 0.0 in scales:
        return 0.0
    first, second = first / scales[0], second / scales[1]
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return min(1.0, float(first @ second) / lengths)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def _first_divergence(
    original: CheckedModel,
    compiled: CheckedModel,
    library: str | None,
    sets: Sequence[Arrays],
    allowed: AllowedError,
) -> str | None:
    """Run both with every tensor they have in common as an output, and compare in graph order."""
    theirs = set(_computed(compiled))
    names = [name for name in _computed(original) if name in theirs]
    exact, computed = (
        [probe.run(feeds) for feeds in sets]
        for probe in (
            Session(original, None, content=_with_outputs(original, names)),
            Session(compiled, library, content=_with_outputs(compiled, names)),
        )
    )
    for name in names:
        references: list[Any] = [arrays[name] for arrays in exact]
        results: list[Any] = [arrays[name] for arrays in computed]
        tensors = all(isinstance(array, np.ndarray) for array in (*references, *results))
        if tensors and not _compare(name, "stock", allowed, references, results).passed:
            return name
    return None


def _computed(model: CheckedModel) -> Iterator[str]:
    """Names of the main graph's intermediate tensors and outputs, in order."""
    for node in model.graph.graph:
        yield from (output.name for output in node.outputs if output.name)


def _with_outputs(model: CheckedModel, names: Sequence[str]) -> bytes:
    proto = onnx.load(str(model.path), load_external_data=False)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in present
    )
    return proto.SerializeToString()
