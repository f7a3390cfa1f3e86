"""Tiled call → inference-mode batch_norm: gamma / sigma joins the scale, the rest the bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tbn_compile.passes.relax.epilogue_fusion import fuse_followers, operator_name
from tbn_compile.passes.relax.fuse_affine import apply_affine
from tbn_compile.passes.relax.tiled_layer import TiledLayer, constant_of


@relax.transform.function_pass(opt_level=0)
class FoldBatchNorm:
    """Fold a batch_norm with constant statistics into the tiled call before it."""

    def transform_function(self, function: Any, _module: Any, _context: Any) -> Any:
        """Fold in one Relax function."""
        return fuse_followers(function, _fold)


def _fold(call: Any, position: int, layer: TiledLayer) -> TiledLayer | None:
    if operator_name(call) != "relax.nn.batch_norm" or position != 0:
        return None
    attributes = call.attrs
    if attributes["training"] or int(attributes["axis"]) != layer.channel_axis:
        return None
    constants = [constant_of(argument) for argument in call.args[1:5]]
    if any(constant is None for constant in constants):
        return None
    gamma, beta, mean, variance = (np.asarray(each, dtype=np.float64) for each in constants)
    spread = variance + float(attributes["epsilon"])
    if not (spread > 0).all():
        return None
    factor = (gamma if attributes["scale"] else 1.0) / np.sqrt(spread)
    return apply_affine(layer, factor, (beta if attributes["center"] else 0.0) - mean * factor)
