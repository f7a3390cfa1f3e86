"""Tiled call → add of another activation: the addition becomes a step of the epilogue."""

from __future__ import annotations

from typing import Any

from tvm import relax

from tbn_compile.passes.relax.epilogue_fusion import fuse_followers, operator_name
from tbn_compile.passes.relax.tiled_layer import Step, TiledLayer


@relax.transform.function_pass(opt_level=0)
class FuseResidual:
    """Fuse the addition of a tensor of the result's own type, as in a residual block."""

    def transform_function(self, function: Any, _module: Any, _context: Any) -> Any:
        """Fuse in one Relax function."""
        return fuse_followers(function, _residual)


def _residual(call: Any, position: int, layer: TiledLayer) -> TiledLayer | None:
    if operator_name(call) != "relax.add":
        return None
    operand = call.args[1 - position]
    if operand.ty != layer.result_type():
        return None
    return layer.with_step(Step("residual", operand=operand))
