"""dequantize → Reshape, MaxPool, ... becomes the same operator on integers → dequantize."""

from __future__ import annotations

from typing import Any

from tvm import relax

from tbn_compile.passes.relax.epilogue_fusion import bound_value, operator_name, with_constants
from tbn_compile.passes.relax.fuse_quantization import read_quantization
from tbn_compile.passes.relax.tiled_layer import Quantization

_ORDER_PRESERVING = {
    "relax.expand_dims",
    "relax.flatten",
    "relax.max",
    "relax.nn.max_pool1d",
    "relax.nn.max_pool2d",
    "relax.nn.max_pool3d",
    "relax.permute_dims",
    "relax.reshape",
    "relax.squeeze",
    "relax.strided_slice",
}
"""Operators that move or compare the elements of their first argument and compute nothing new."""


@relax.transform.function_pass(opt_level=0)
class MoveDequantize:
    """Move dequantize after operators that move or compare values, and drop quantize after it.

    Run it before `FuseQuantization`, so that layers with such operators between them meet in
    integers. Only tensors with one scale and zero point are moved.
    """

    def transform_function(self, function: Any, _module: Any, _context: Any) -> Any:
        """Move in one Relax function."""
        function = relax.analysis.remove_all_unused(function)
        return relax.analysis.remove_all_unused(_Mover().visit_expr(function))


@relax.expr_functor.mutator
class _Mover(relax.PyExprMutator):
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        dequantize: Any = bound_value(self, call.args[0]) if call.args else None
        if operator_name(dequantize) != "relax.dequantize":
            return call
        quantization = read_quantization(with_constants(self, dequantize))
        if isinstance(quantization, str):
            return call
        integers, scale, zero_point = dequantize.args
        if operator_name(call) == "relax.quantize":
            same = read_quantization(with_constants(self, call)) == quantization
            return integers if same else call
        moved = _on_integers(call, integers, quantization)
        if moved is None:
            return call
        return relax.op.dequantize(self.builder_.emit(moved), scale, zero_point)


def _on_integers(call: Any, integers: Any, quantization: Quantization) -> Any:
    """The call on integers, or None if it computes with them."""
    if operator_name(call) in _ORDER_PRESERVING:
        return relax.Call(call.op, [integers, *call.args[1:]], call.attrs)
    if operator_name(call) == "relax.nn.relu":
        zero = relax.const(quantization.zero_point, quantization.dtype)
        return relax.op.maximum(integers, zero)
    return None
