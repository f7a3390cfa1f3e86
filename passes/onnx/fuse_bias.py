"""`ai.tbn` node → Add of a constant: the constant becomes the node's bias."""

from __future__ import annotations

import onnx_ir as ir

from tbn_compile import operators
from tbn_compile.passes.onnx.constants import NotConstant, constant_array
from tbn_compile.passes.onnx.lower_gemm import as_bias
from tbn_compile.passes.onnx.tiled_nodes import (
    Initializers,
    absorb,
    clamps,
    constant_tiled_nodes,
    only_follower,
    outputs_of,
    read_bias,
    write_bias,
)
from tbn_compile.tile import Floats


class FuseBiasPass(ir.passes.InPlacePass):
    """Fuse an Add that follows a tiled node into its epilogue.

    Args:
        opset: the version of the default operator set that the model imports.
    """

    def __init__(self, opset: int) -> None:
        super().__init__()
        self.opset = opset

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse in the graph and its subgraphs."""
        initializers = Initializers(model)
        modified = False
        for node in constant_tiled_nodes(model):
            follower = only_follower(node, "Add")
            if follower is None or clamps(node) or read_bias(node) is not None:
                continue
            bias = self._constant_operand(node, follower)
            if bias is None:
                continue
            write_bias(node, bias, initializers)
            absorb(node, follower)
            modified = True
        return ir.passes.PassResult(model, modified)

    def _constant_operand(self, node: ir.Node, add: ir.Node) -> Floats | None:
        """The other operand as float[N], if it is a constant that leaves the result's shape."""
        others = [value for value in add.inputs if value is not node.outputs[0]]
        if len(others) != 1 or others[0] is None:
            return None
        array = constant_array(others[0], self.opset)
        if isinstance(array, NotConstant):
            return None
        shape = node.outputs[0].shape
        if array.ndim > (len(shape) if shape is not None else 1):
            return None
        spatial = _spatial_axes(node)
        if array.ndim > spatial and array.shape[array.ndim - spatial :] == (1,) * spatial:
            return as_bias(array.reshape(array.shape[: array.ndim - spatial]), outputs_of(node))
        return as_bias(array, outputs_of(node)) if array.size == 1 else None


def _spatial_axes(node: ir.Node) -> int:
    """How many axes of the result come after the one of outputs."""
    is_gemm = node.op_type == operators.GEMM
    return 0 if is_gemm else len(node.attributes["weight_shape"].as_ints()) - 2
