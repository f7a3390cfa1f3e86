"""Does what was compiled compute what the model computes? Asked before the artifact is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from tbn_compile.errors import ModelError, clean
from tbn_compile.sessions import CheckedModel, Session, check_model, random_inputs
from tbn_compile.targets.compiled.loader import load
from tbn_compile.targets.relax_import import agrees

_SEED = 0
_TOLERANCE = 0.05
"""Share of the largest magnitude: rounding stays below it, other meanings of a graph do not."""

NOT_COMPARED = "Not compared with ONNX Runtime, which cannot run bfloat16 here: compare it yourself"
"""What a user must know where `verify_artifact` gives False."""


def verify_artifact(artifact: Path, source: Path, input_dims: Mapping[str, int]) -> bool:
    """Compare one run on random inputs with ONNX Runtime on the original model.

    TVM's ONNX frontend passes over some attributes and optional outputs in silence.

    Args:
        artifact: for this machine.
        source: the original model's file.
        input_dims: extents of symbolic dimensions; others are 1.

    Returns:
        False if there is nothing to compare with: ONNX Runtime has hardly an operator in bfloat16
        on a CPU.

    Raises:
        ModelError: if an output has another shape, type or value; the text names it.
    """
    original = check_model(source)
    try:
        inputs = random_inputs(original, _SEED, input_dims)
        references = Session(original).run(inputs)
    except ModelError:
        if _has_bfloat16(original):
            return False
        raise
    results = load(artifact).run(inputs)
    for name, reference in references.items():
        if not agrees(results[name], reference, _TOLERANCE):
            raise ModelError(
                f"TVM reads the graph otherwise than ONNX Runtime: output {clean(name, 60)!r} "
                f"differs; an operator on its way has an attribute or optional output that TVM "
                f"passes over"
            )
    return True


def _has_bfloat16(model: CheckedModel) -> bool:
    graph = model.graph.graph
    results = (output for node in graph.all_nodes() for output in node.outputs)
    values = (*graph.inputs, *graph.initializers.values(), *results)
    return any(value.dtype == ir.DataType.BFLOAT16 for value in values)
