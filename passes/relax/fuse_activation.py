"""Tiled call → relu, clip or gelu: the activation becomes a step of the epilogue."""

from __future__ import annotations

from math import inf, nan
from typing import Any

from tvm import relax

from tbn_compile.passes.relax.epilogue_fusion import fuse_followers, operator_name
from tbn_compile.passes.relax.tiled_layer import Step, TiledLayer, constant_of


@relax.transform.function_pass(opt_level=0)
class FuseActivation:
    """Fuse relu, clip, gelu and gelu_tanh, and maximum and minimum with one constant."""

    def transform_function(self, function: Any, _module: Any, _context: Any) -> Any:
        """Fuse in one Relax function."""
        return fuse_followers(function, _activation)


def _activation(call: Any, position: int, layer: TiledLayer) -> TiledLayer | None:
    name = operator_name(call)
    if name in _ELEMENTWISE:
        return layer.with_step(_ELEMENTWISE[name])
    lower, upper = _bounds(name, call, position)
    return layer.with_step(Step("clip", bounds=(lower, upper))) if lower <= upper else None


_ELEMENTWISE = {
    "relax.nn.relu": Step("clip", bounds=(0.0, inf)),
    "relax.nn.gelu": Step("gelu"),
    "relax.nn.gelu_tanh": Step("gelu_tanh"),
}


def _bounds(name: str, call: Any, position: int) -> tuple[float, float]:
    """What a call clamps to; not numbers if it does not, or if they are computed."""
    match name:
        case "relax.clip":
            return float(call.args[1].value), float(call.args[2].value)
        case "relax.maximum":
            return _scalar(call.args[1 - position]), inf
        case "relax.minimum":
            return -inf, _scalar(call.args[1 - position])
    return nan, nan


def _scalar(expression: Any) -> float:
    """The one value of a constant that leaves the other operand's shape, or not a number."""
    array = constant_of(expression)
    return nan if array is None or array.ndim else float(array)
