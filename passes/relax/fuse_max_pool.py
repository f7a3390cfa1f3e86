"""Tiled convolution → max_pool of windows side by side: only the greatest elements are stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import relax

from tbn_compile.passes.relax.epilogue_fusion import fuse_followers, operator_name
from tbn_compile.passes.relax.tiled_layer import TiledLayer

_LAYOUTS = {
    "relax.nn.max_pool1d": "NCW",
    "relax.nn.max_pool2d": "NCHW",
    "relax.nn.max_pool3d": "NCDHW",
}


@relax.transform.function_pass(opt_level=0)
class FuseMaxPool:
    """Fuse pooling whose windows neither overlap nor leave gaps, without padding.

    It is the last step of a layer: nothing fuses after it. Run the other passes first.
    """

    def transform_function(self, function: Any, _module: Any, _context: Any) -> Any:
        """Fuse in one Relax function."""
        return fuse_followers(function, _pooled, after_rounding=True)


def _pooled(call: Any, _position: int, layer: TiledLayer) -> TiledLayer | None:
    layout = _LAYOUTS.get(operator_name(call))
    if layout is None or layer.window is None or call.attrs.layout != layout:
        return None
    sizes, strides = tuple(map(int, call.attrs.pool_size)), tuple(map(int, call.attrs.strides))
    is_padded = any(map(int, call.attrs.padding)) or call.attrs.ceil_mode
    if is_padded or strides != sizes or set(map(int, call.attrs.dilation)) != {1}:
        return None
    return replace(layer, pool=sizes)
