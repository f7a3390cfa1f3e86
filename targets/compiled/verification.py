"""Does what was compiled compute what the model computes? Asked before the artifact is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tbn_compile.errors import ModelError, clean
from tbn_compile.sessions import Arrays, CheckedModel, Session, check_model, random_inputs
from tbn_compile.targets.compiled.loader import load
from tbn_compile.targets.relax_import import agrees

_SEED = 0
_MANY = 17
"""More rows than kernels for few rows take."""
_TOLERANCE = 0.05
"""Share of the largest magnitude: rounding stays below it, other meanings of a graph do not."""

NOT_COMPARED = "Not compared with ONNX Runtime, which cannot run bfloat16 here: compare it yourself"
"""What a user must know where `verify_artifact` gives False."""


def verify_artifact(artifact: Path, source: Path, input_dims: Mapping[str, int]) -> bool:
    """Compare runs on random inputs with ONNX Runtime on the original model.

    TVM's ONNX frontend passes over some attributes and optional outputs in silence, and code for a
    dynamic batch differs by its size.

    Args:
        artifact: for this machine.
        source: the original model's file.
        input_dims: extents of symbolic dimensions; others are 1, and then, where ONNX Runtime
            takes that, 17.

    Returns:
        False if there is nothing to compare with: ONNX Runtime has hardly an operator in bfloat16
        on a CPU.

    Raises:
        ModelError: if an output has another shape, type or value; the text names it.
    """
    original = check_model(source)
    try:
        runs = list(_reference_runs(original, input_dims))
    except ModelError:
        if _has_bfloat16(original):
            return False
        raise
    compiled = load(artifact)
    for inputs, references in runs:
        _compare(compiled.run(inputs), references)
    return True


def _reference_runs(
    model: CheckedModel, input_dims: Mapping[str, int]
) -> Iterator[tuple[Arrays, Arrays]]:
    """Inputs, and what ONNX Runtime makes of them."""
    session, symbols = Session(model), _symbols(model)
    for extent in (1, _MANY) if symbols - input_dims.keys() else (1,):
        try:
            inputs = random_inputs(model, _SEED, dict.fromkeys(symbols, extent) | dict(input_dims))
            yield inputs, session.run(inputs)
        except ModelError:
            if extent == 1:
                raise


def _symbols(model: CheckedModel) -> set[str]:
    shapes = [value.shape for value in model.inputs if value.shape is not None]
    extents = (extent for shape in shapes for extent in shape)
    return {e.value for e in extents if isinstance(e, ir.SymbolicDim) and e.value is not None}


def _compare(results: Mapping[str, Any], references: Mapping[str, Any]) -> None:
    for name, reference in references.items():
        if not agrees(results[name], reference, _TOLERANCE):
            raise ModelError(
                f"TVM reads the graph otherwise than ONNX Runtime: output {clean(name, 60)!r} "
                f"differs; an operator on its way has an attribute or optional output that TVM "
                f"passes over"
            )


def _has_bfloat16(model: CheckedModel) -> bool:
    graph = model.graph.graph
    results = (output for node in graph.all_nodes() for output in node.outputs)
    values = (*graph.inputs, *graph.initializers.values(), *results)
    return any(value.dtype == ir.DataType.BFLOAT16 for value in values)
