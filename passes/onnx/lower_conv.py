"""Conv with a tiled weight → TiledBinaryConv."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from tbn_compile import operators
from tbn_compile.passes.onnx.constants import NotConstant, constant_array
from tbn_compile.passes.onnx.finding import TileFinder
from tbn_compile.passes.onnx.tiled_nodes import Initializers, make_tiled_node, nodes_of, replace
from tbn_compile.tile import TiledBinaryWeight


class LowerConvPass(ir.passes.InPlacePass):
    """Lower Conv of 1, 2 or 3 spatial axes with all its attributes.

    Args:
        finder: detects the tiles and receives what became of each layer.
    """

    def __init__(self, finder: TileFinder) -> None:
        super().__init__()
        self.finder = finder

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Conv in the graph and its subgraphs."""
        initializers = Initializers(model)
        modified = False
        for node in nodes_of(model, "Conv"):
            layer, weight = self.finder.find_kernel(node)
            x, addend = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
            if weight is None or x is None:
                continue
            bias = None if addend is None else constant_array(addend, self.finder.opset)
            if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" and any(
                node.attributes.get_ints("pads") or ()
            ):
                self.finder.leave(layer, "pads and auto_pad are both given; remove one")
                continue
            if isinstance(bias, NotConstant):
                self.finder.leave(layer, f"the bias {bias.reason}")
                continue
            layer.tiled = make_tiled_node(
                operators.CONV, node, x, weight, bias, _attributes(node, weight), initializers
            )
            replace(node, [layer.tiled])
            modified = True
        return ir.passes.PassResult(model, modified)


def _attributes(node: ir.Node, weight: TiledBinaryWeight) -> dict[str, Any]:
    """The node's convolution attributes, all written out, with either pads or auto_pad."""
    axes = len(weight.shape) - 2
    ones, zeros = [1] * axes, [0] * 2 * axes
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    padding = (
        {"pads": list(node.attributes.get_ints("pads") or zeros)}
        if auto_pad == "NOTSET"
        else {"auto_pad": auto_pad}
    )
    return {
        "dilations": list(node.attributes.get_ints("dilations") or ones),
        "group": node.attributes.get_int("group", 1),
        "strides": list(node.attributes.get_ints("strides") or ones),
        **padding,
    }
