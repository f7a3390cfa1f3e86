"""MatMul with a tiled weight on its right → TiledBinaryGemm."""

from __future__ import annotations

import onnx_ir as ir

from tbn_compile import operators
from tbn_compile.passes.onnx.constants import NotConstant, constant_array
from tbn_compile.passes.onnx.finding import Layer, TileFinder
from tbn_compile.passes.onnx.tiled_nodes import Initializers, make_tiled_node, nodes_of, replace


class LowerMatMulPass(ir.passes.InPlacePass):
    """Lower MatMul whose right operand is a [K, N] weight; the left one may have any rank.

    Args:
        finder: detects the tiles and receives what became of each layer.
    """

    def __init__(self, finder: TileFinder) -> None:
        super().__init__()
        self.finder = finder

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every MatMul in the graph and its subgraphs."""
        initializers = Initializers(model)
        modified = False
        for node in nodes_of(model, "MatMul"):
            layer, weight = self.finder.find_matrix(node, transposed=False)
            x = node.inputs[0]
            if weight is None or x is None:
                self._explain(node, layer)
                continue
            attributes = {"transB": int(weight.layout == "NK")}
            layer.tiled = make_tiled_node(
                operators.GEMM, node, x, weight, None, attributes, initializers
            )
            replace(node, [layer.tiled])
            modified = True
        return ir.passes.PassResult(model, modified)

    def _explain(self, node: ir.Node, layer: Layer) -> None:
        """Name the case of a weight on the left, and of two activations."""
        left, right = node.inputs
        if layer.shape or left is None or right is None:
            return
        outcome = constant_array(right, self.finder.opset)
        if not isinstance(outcome, NotConstant) or not outcome.computed:
            return
        constant = not isinstance(constant_array(left, self.finder.opset), NotConstant)
        reason = (
            "the weight is the left operand; put it on the right, transposed"
            if constant
            else "both operands are computed when the model runs"
        )
        self.finder.leave(layer, reason)
