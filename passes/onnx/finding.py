"""Find the tile behind a node's weight once, and note what became of every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from tbn_compile.detection import NotTiled, detect_tile
from tbn_compile.passes.onnx.constants import NotConstant, constant_array
from tbn_compile.passes.onnx.tiled_nodes import FLOAT_KINDS
from tbn_compile.tile import TiledBinaryWeight


@dataclass
class Layer:
    """A node with a weight, and what the passes decided.

    Attributes:
        name: the node's name, or its result's.
        operator: operator type in the original graph.
        node: the original node.
        value: the weight in the original graph, or None.
        weight: its name.
        shape: its shape as the node sees it; empty if it is not constant.
        dtype: its element type, as numpy names it.
        weight_bytes: the dense weight's size; 0 if it is not constant.
        tiled: the `ai.tbn` node that replaced it, or None.
        reason: why it was left alone, or None.
    """

    name: str
    operator: str
    node: ir.Node
    value: ir.Value | None = None
    weight: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    weight_bytes: int = 0
    tiled: ir.Node | None = None
    reason: str | None = None


_Outcome: TypeAlias = tuple[TiledBinaryWeight | str, tuple[int, ...], str, int]
"""A tile or a reason; then the weight's shape, element type and bytes."""


@dataclass
class TileFinder:
    """Detects tiles in a model's weights and keeps the list of its layers.

    Attributes:
        opset: the version of the default operator set that the model imports.
        layers: every node that a lowering pass looked at, in order.
        on_layer: called with the number of layers seen so far, or None.
    """

    opset: int
    layers: list[Layer] = field(default_factory=list)
    on_layer: Callable[[int], None] | None = None
    _found: dict[tuple[ir.Value, str], _Outcome] = field(default_factory=dict)

    def find_kernel(self, node: ir.Node) -> tuple[Layer, TiledBinaryWeight | None]:
        """The tile of a Conv's weight [N, K1, K2, ...], its second input."""
        return self._find(node, "kernel")

    def find_matrix(
        self, node: ir.Node, transposed: bool
    ) -> tuple[Layer, TiledBinaryWeight | None]:
        """The tile of a Gemm's or MatMul's second input, [N, K] if `transposed`, else [K, N]."""
        return self._find(node, "NK" if transposed else "KN")

    def refuse(self, node: ir.Node, reason: str) -> None:
        """Note a layer whose operator no pass lowers."""
        self.leave(self._note(node), reason)

    def explain(self, layer: Layer) -> None:
        """Name the case of a weight on the left, and of two activations."""
        left, right = layer.node.inputs[:2]
        if layer.shape or left is None or right is None:
            return
        outcome = constant_array(right, self.opset)
        if not isinstance(outcome, NotConstant) or not outcome.computed:
            return
        if not isinstance(constant_array(left, self.opset), NotConstant):
            self.leave(layer, "the weight is the left operand; put it on the right, transposed")
        elif layer.operator == "MatMul":
            self.leave(layer, "both operands are computed when the model runs")

    def leave(self, layer: Layer, reason: str) -> None:
        """Note that a layer stays as it is."""
        layer.reason = reason

    def _note(self, node: ir.Node) -> Layer:
        layer = Layer(node.name or node.outputs[0].name or node.op_type, node.op_type, node)
        self.layers.append(layer)
        if self.on_layer is not None:
            self.on_layer(len(self.layers))
        return layer

    def _find(self, node: ir.Node, form: str) -> tuple[Layer, TiledBinaryWeight | None]:
        value = node.inputs[1]
        layer = self._note(node)
        if value is None:
            self.leave(layer, "it has no weight")
            return layer, None
        layer.value, layer.weight = value, value.name or ""
        if (value, form) not in self._found:
            self._found[value, form] = self._detect(value, form)
        outcome, layer.shape, layer.dtype, layer.weight_bytes = self._found[value, form]
        if isinstance(outcome, str):
            self.leave(layer, outcome)
            return layer, None
        return layer, outcome

    def _detect(self, value: ir.Value, form: str) -> _Outcome:
        array = constant_array(value, self.opset)
        if isinstance(array, NotConstant):
            return f"the weight {array.reason}", (), "", 0
        about = array.shape, array.dtype.name, array.nbytes
        if ir.DataType.from_numpy(array.dtype) not in FLOAT_KINDS:
            return (
                f"weights are {array.dtype.name}; only float32, float16 and bfloat16 are lowered",
                *about,
            )
        if form == "kernel":
            kernel = 3 <= array.ndim <= 5
            found = detect_tile(array) if kernel else NotTiled(f"{array.ndim - 2} spatial axes")
        elif array.ndim != 2:
            return f"the weight has {array.ndim} axes; only matrices are lowered", *about
        else:
            found = detect_tile(np.asarray(array if form == "NK" else array.T), ("NK", "KN"))
        return found.reason if isinstance(found, NotTiled) else found, *about
