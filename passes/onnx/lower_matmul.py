"""MatMul with a tiled weight on its right → TiledBinaryGemm."""

from __future__ import annotations

import onnx_ir as ir

from tbn_compile import operators
from tbn_compile.passes.onnx.finding import TileFinder
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
                self.finder.explain(layer)
                continue
            attributes = {"transB": int(weight.layout == "NK")}
            layer.tiled = make_tiled_node(
                operators.GEMM, node, x, weight, None, attributes, initializers
            )
            replace(node, [layer.tiled])
            modified = True
        return ir.passes.PassResult(model, modified)
