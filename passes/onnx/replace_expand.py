"""Say Expand without its broadcasting where extents are symbolic: TVM cannot read that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from tbn_compile.passes.onnx.constants import NotConstant, constant_array
from tbn_compile.passes.onnx.tiled_nodes import Initializers, nodes_of, replace


class ReplaceExpandPass(ir.passes.InPlacePass):
    """Replace Expand to a constant shape by Tile, or by Identity if nothing is repeated.

    An axis is repeated where its extent is known to be 1; an unknown extent must meet 1. Inputs
    whose every extent is known are left alone, and so are shapes of more axes than the input has.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the nodes of the graph and its subgraphs."""
        initializers, modified = Initializers(model), False
        for node in nodes_of(model, "Expand"):
            repeats = _repeats(node, model.graph.opset_imports[""])
            if repeats is None:
                continue
            replace(node, [_node(node, repeats, initializers)])
            modified = True
        return ir.passes.PassResult(model, modified)


def _repeats(node: ir.Node, opset: int) -> list[int] | None:
    """How often each axis of the input is repeated, or None if the node stays."""
    value, target = node.inputs
    if value is None or target is None or value.shape is None or value.shape.is_static():
        return None
    wanted = constant_array(target, opset)
    if isinstance(wanted, NotConstant) or len(wanted) > len(value.shape):
        return None
    extents = [1] * (len(value.shape) - len(wanted)) + wanted.tolist()
    return _counts(list(value.shape), extents)


def _counts(shape: Sequence[int | ir.SymbolicDim], extents: Sequence[int]) -> list[int] | None:
    """Repeats that make `extents` of a shape; None where an unknown extent decides."""
    for present, wanted in zip(shape, extents, strict=True):
        if wanted != 1 and present not in (1, wanted):
            return None
    return [wanted if present == 1 else 1 for present, wanted in zip(shape, extents, strict=True)]


def _node(source: ir.Node, repeats: list[int], initializers: Initializers) -> ir.Node:
    if set(repeats) == {1}:
        return ir.node("Identity", source.inputs[:1], name=source.name)
    name = source.name or source.outputs[0].name or "Expand"
    counts = initializers.add(f"{name}.repeats", np.array(repeats, np.int64))
    return ir.node("Tile", [source.inputs[0], counts], name=source.name)
