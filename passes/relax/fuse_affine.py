"""Tiled call → add, subtract, multiply or divide by constants: into its scale and bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tbn_compile.errors import TileError
from tbn_compile.passes.relax.epilogue_fusion import fuse_followers, operator_name
from tbn_compile.passes.relax.tiled_layer import Step, TiledLayer, constant_of, replace_layer
from tbn_compile.tile import Floats, TiledBinaryWeight


@relax.transform.function_pass(opt_level=0)
class FuseAffine:
    """Fuse arithmetic with one constant for the layer or one per output."""

    def transform_function(self, function: Any, _module: Any, _context: Any) -> Any:
        """Fuse in one Relax function."""
        return fuse_followers(function, _affine)


def apply_affine(layer: TiledLayer, factor: Floats | None, shift: Floats) -> TiledLayer | None:
    """The layer with factor · y + shift in its scale and bias, rounded once to its type.

    Args:
        layer: one with nothing but a bias in its epilogue.
        factor: float64[N], or None to leave the scale.
        shift: float64[N].

    Returns:
        None if a later step, a scale or bias that is no constant, or the scale's own form forbids
        it.
    """
    bias, weight = _constant_bias(layer), None
    if bias is None:
        return None
    if factor is not None:
        weight, bias = _scaled(layer, factor), bias * factor
        if weight is None:
            return None
    with np.errstate(over="ignore"):
        shifted = (bias + shift).astype(layer.weight.scale.dtype)
    step = Step("bias", operand=relax.const(shifted, layer.element_type))
    return replace_layer(layer, weight=weight, epilogue=(step,))


def _scaled(layer: TiledLayer, factor: Floats) -> TiledBinaryWeight | None:
    if constant_of(layer.scale) is None or not np.isfinite(factor).all():
        return None
    try:
        weight = layer.weight.scaled(_uniform(factor))
    except TileError:
        return None
    longest = max(layer.weight.scale.size, layer.weight.outputs)
    return weight if weight.scale.size <= longest else None


def _affine(call: Any, position: int, layer: TiledLayer) -> TiledLayer | None:
    operation = operator_name(call).removeprefix("relax."), position
    if operation[0] not in ("add", "subtract", "multiply", "divide"):
        return None
    constant = _per_output(constant_of(call.args[1 - position]), layer)
    if constant is None:
        return None
    zeros = np.zeros_like(constant)
    forms = {
        ("add", 0): (None, constant),
        ("add", 1): (None, constant),
        ("subtract", 0): (None, -constant),
        ("subtract", 1): (zeros - 1, constant),
        ("multiply", 0): (constant, zeros),
        ("multiply", 1): (constant, zeros),
    }
    if constant.all():
        forms["divide", 0] = 1 / constant, zeros
    return apply_affine(layer, *forms[operation]) if operation in forms else None


def _per_output(array: Floats | None, layer: TiledLayer) -> Floats | None:
    """A constant operand as float64[N]; None if it varies otherwise or widens the result."""
    rank = len(layer.x.ty.shape.values)
    if array is None or array.ndim > rank:
        return None
    outputs = layer.weight.outputs
    shape = (1,) * (rank - array.ndim) + array.shape
    allowed = [1] * rank
    allowed[layer.channel_axis] = outputs
    if any(extent not in (1, most) for extent, most in zip(shape, allowed, strict=True)):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (outputs,))


def _constant_bias(layer: TiledLayer) -> Floats | None:
    """float64[N], zeros if there is no bias; None if it is computed or a step follows it."""
    if not layer.epilogue:
        return np.zeros(layer.weight.outputs)
    bias = constant_of(layer.epilogue[0].operand)
    if len(layer.epilogue) > 1 or layer.epilogue[0].kind != "bias" or bias is None:
        return None
    return bias.astype(np.float64)


def _uniform(factor: Floats) -> Floats:
    """One factor for the layer where all outputs share it, so that its scale stays as short."""
    return factor[0] if (factor == factor[0]).all() else factor
