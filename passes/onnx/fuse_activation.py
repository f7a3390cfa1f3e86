"""`ai.tbn` node → Relu or Clip: the clamp becomes the node's last step."""

from __future__ import annotations

import onnx_ir as ir

from tbn_compile import operators
from tbn_compile.passes.onnx.constants import NotConstant, constant_array
from tbn_compile.passes.onnx.tiled_nodes import absorb, only_follower, tiled_nodes


class FuseActivationPass(ir.passes.InPlacePass):
    """Fuse Relu and Clip with constant bounds into the epilogue of the tiled node before them.

    Args:
        opset: the version of the default operator set that the model imports.
    """

    def __init__(self, opset: int) -> None:
        super().__init__()
        self.opset = opset

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse in the graph and its subgraphs; chains of clamps are joined."""
        modified = False
        for node in tiled_nodes(model):
            while (follower := only_follower(node, "Relu", "Clip")) is not None:
                bounds = self._bounds(follower)
                if bounds is None or follower.inputs[0] is not node.outputs[0]:
                    break
                _narrow(node, *bounds)
                absorb(node, follower)
                modified = True
        return ir.passes.PassResult(model, modified)

    def _bounds(self, node: ir.Node) -> tuple[float, float] | None:
        """Lower and upper bound; None if they are computed, empty or no single numbers."""
        if node.op_type == "Relu":
            return 0.0, operators.INFINITY
        bounds = [-operators.INFINITY, operators.INFINITY]
        for index, value in enumerate(node.inputs[1:3]):
            if value is None:
                continue
            array = constant_array(value, self.opset)
            if isinstance(array, NotConstant) or array.size != 1:
                return None
            bounds[index] = float(array.reshape(-1)[0])
        lower, upper = bounds
        return (lower, upper) if lower <= upper else None


def _narrow(node: ir.Node, lower: float, upper: float) -> None:
    """Clamp to the node's bounds first, then to these."""
    for key, default in (
        ("activation_min", -operators.INFINITY),
        ("activation_max", operators.INFINITY),
    ):
        present = node.attributes.get_float(key, default)
        node.attributes[key] = ir.AttrFloat32(key, min(max(present, lower), upper))
