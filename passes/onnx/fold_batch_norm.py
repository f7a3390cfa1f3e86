"""`ai.tbn` node → BatchNormalization: gamma / sigma joins the scale, the rest the bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tbn_compile import operators
from tbn_compile.errors import TileError
from tbn_compile.passes.onnx.constants import NotConstant, constant_array
from tbn_compile.passes.onnx.tiled_nodes import (
    Initializers,
    absorb,
    clamps,
    constant_tiled_nodes,
    only_follower,
    read_bias,
    read_weight,
    write_bias,
    write_weight,
)
from tbn_compile.tile import Floats


@dataclass(frozen=True)
class _Affine:
    """y = factor · x + shift, float64[N] each."""

    factor: Floats
    shift: Floats


class FoldBatchNormPass(ir.passes.InPlacePass):
    """Fold an inference-mode BatchNormalization into the epilogue of the tiled node before it.

    Args:
        opset: the version of the default operator set that the model imports.
    """

    def __init__(self, opset: int) -> None:
        super().__init__()
        self.opset = opset

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in the graph and its subgraphs."""
        initializers = Initializers(model)
        modified = False
        for node in constant_tiled_nodes(model):
            follower = only_follower(node, "BatchNormalization")
            if follower is None or clamps(node) or not _channels_are_outputs(node):
                continue
            affine = self._affine(follower)
            if affine is None or not _fold(node, affine, initializers):
                continue
            absorb(node, follower)
            modified = True
        return ir.passes.PassResult(model, modified)

    def _affine(self, node: ir.Node) -> _Affine | None:
        """The node as a factor and a shift; None in training mode or without constants."""
        if node.attributes.get_int("training_mode", 0):
            return None
        parameters: list[Floats] = []
        for value in node.inputs[1:5]:
            array = None if value is None else constant_array(value, self.opset)
            if array is None or isinstance(array, NotConstant):
                return None
            parameters.append(array.astype(np.float64))
        gamma, beta, mean, variance = parameters
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        if (variance + epsilon <= 0).any():
            return None
        factor = gamma / np.sqrt(variance + epsilon)
        return _Affine(factor, beta - mean * factor)


def _channels_are_outputs(node: ir.Node) -> bool:
    """BatchNormalization works on axis 1, which is a Gemm's last axis only for two axes."""
    if node.op_type == operators.CONV:
        return True
    shape = node.outputs[0].shape
    return shape is not None and len(shape) == 2


def _fold(node: ir.Node, affine: _Affine, initializers: Initializers) -> bool:
    weight = read_weight(node)
    kind = weight.scale.dtype
    try:
        scaled = weight.scaled(affine.factor.astype(np.float32))
    except TileError:
        return False
    if scaled.scale.size > max(weight.scale.size, weight.outputs):
        return False
    bias = read_bias(node)
    shift = affine.shift if bias is None else affine.shift + bias.astype(np.float64) * affine.factor
    with np.errstate(over="ignore"):
        new_bias = shift.astype(kind)
    if not np.isfinite(new_bias.astype(np.float64)).all():
        return False
    write_weight(node, scaled, initializers)
    write_bias(node, new_bias, initializers)
    return True
