"""Gemm with a tiled weight → TiledBinaryGemm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tbn_compile import operators
from tbn_compile.errors import TileError
from tbn_compile.passes.onnx.constants import NotConstant, constant_array
from tbn_compile.passes.onnx.finding import TileFinder
from tbn_compile.passes.onnx.tiled_nodes import Initializers, make_tiled_node, nodes_of, replace
from tbn_compile.tile import Floats, TiledBinaryWeight


class LowerGemmPass(ir.passes.InPlacePass):
    """Lower Gemm: alpha joins the scale, beta · C the bias; transA becomes a Transpose before.

    Args:
        finder: detects the tiles and receives what became of each layer.
    """

    def __init__(self, finder: TileFinder) -> None:
        super().__init__()
        self.finder = finder

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Gemm in the graph and its subgraphs."""
        initializers = Initializers(model)
        modified = False
        for node in nodes_of(model, "Gemm"):
            transposed = bool(node.attributes.get_int("transB", 0))
            layer, weight = self.finder.find_matrix(node, transposed)
            if weight is None:
                self.finder.explain(layer)
                continue
            try:
                weight = _times_alpha(node, weight)
            except TileError as error:
                self.finder.leave(layer, f"alpha cannot join the scale: {error}")
                continue
            layer.tiled = self._lower(node, weight, initializers)
            modified = True
        return ir.passes.PassResult(model, modified)

    def _lower(
        self, node: ir.Node, weight: TiledBinaryWeight, initializers: Initializers
    ) -> ir.Node:
        beta = node.attributes.get_float("beta", 1.0)
        x, before = _untransposed(node)
        addend = node.inputs[2] if len(node.inputs) > 2 else None
        bias = self._bias(addend, beta, weight)
        attributes = {"transB": int(weight.layout == "NK")}
        tiled = make_tiled_node(operators.GEMM, node, x, weight, bias, attributes, initializers)
        after = [] if bias is not None or addend is None else _added(tiled, addend, beta)
        replace(node, [*before, tiled, *after])
        return tiled

    def _bias(
        self, addend: ir.Value | None, beta: float | None, weight: TiledBinaryWeight
    ) -> Floats | None:
        """Beta · C as float[N]; None if there is none or it is no constant row."""
        if addend is None:
            return None
        array = constant_array(addend, self.finder.opset)
        if isinstance(array, NotConstant):
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # as the runtime would
            product = array * np.asarray(beta, dtype=array.dtype)
        return as_bias(product, weight.outputs)


def _times_alpha(node: ir.Node, weight: TiledBinaryWeight) -> TiledBinaryWeight:
    alpha = node.attributes.get_float("alpha", 1.0)
    return weight if alpha == 1.0 else weight.scaled(np.asarray(alpha, dtype=np.float32))


def as_bias(array: Floats, outputs: int) -> Floats | None:
    """A constant that broadcasts along the last axis as float[N]; None if it does not."""
    if array.size not in (1, outputs) or (array.ndim and array.shape[-1] != array.size):
        return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (outputs,)))


def _untransposed(node: ir.Node) -> tuple[ir.Value, list[ir.Node]]:
    x = node.inputs[0]
    if x is None or not node.attributes.get_int("transA", 0):
        return x, []  # type: ignore[return-value]  # the checker has refused a Gemm without A
    transpose = ir.node("Transpose", [x], {"perm": [1, 0]})
    transpose.outputs[0].type = x.type
    return transpose.outputs[0], [transpose]


def _added(tiled: ir.Node, addend: ir.Value, beta: float | None) -> list[ir.Node]:
    """The nodes that add beta · C where C is no constant row."""
    before: list[ir.Node] = []
    if beta != 1.0:
        factor = ir.node("Constant", [], {"value": ir.tensor(np.asarray(beta, np.float32))})
        like = ir.node("CastLike", [factor.outputs[0], addend])
        product = ir.node("Mul", [addend, like.outputs[0]])
        before = [factor, like, product]
        addend = product.outputs[0]
    return [*before, ir.node("Add", [tiled.outputs[0], addend])]
