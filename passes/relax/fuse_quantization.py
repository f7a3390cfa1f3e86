"""dequantize → tiled call → quantize: one tiled call on integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from tbn_compile.errors import ModelError
from tbn_compile.passes.relax.epilogue_fusion import (
    bound_value,
    fuse_followers,
    operator_name,
    with_constants,
)
from tbn_compile.passes.relax.tiled_layer import (
    Quantization,
    TiledLayer,
    constant_of,
    element_type,
    is_tiled,
    read_layer,
)


@relax.transform.function_pass(opt_level=0)
class FuseQuantization:
    """Let tiled calls take integers after a dequantize, and give integers before a quantize.

    The tensors need one constant scale and zero point each, as int8 or uint8. A layer without a
    quantize after it takes integers and gives floats. Activations belong into the epilogue first:
    run `FuseActivation` before this pass.

    Args:
        on_left: called with the reason, for each tiled call after a dequantize that keeps floats.
    """

    def __init__(self, on_left: Callable[[str], None] | None = None) -> None:
        self._on_left = on_left

    def transform_function(self, function: Any, _module: Any, _context: Any) -> Any:
        """Fuse in one Relax function."""
        function = _InputFuser(self._on_left).visit_expr(function)
        return fuse_followers(function, _quantized_output)


def read_quantization(call: Any) -> Quantization | str:
    """What a quantize or dequantize does to a whole tensor, or why it is not that simple.

    Args:
        call: the call, with constants and no variables for its scale and zero point.
    """
    scale, zero_point = map(constant_of, call.args[1:])
    if scale is None or zero_point is None:
        return "the scale or zero point of its integers is computed"
    if scale.size != 1 or zero_point.size != 1:
        return "its integers have a scale per channel; quantize activations per tensor"
    types = element_type(call.args[0]), str(call.attrs.out_dtype)
    numbers, integers = types if operator_name(call) == "relax.quantize" else types[::-1]
    if numbers != "float32" or scale.dtype != np.float32:
        return "its integers stand for numbers that are not float32"
    quantization = Quantization(float(scale.reshape(())), int(zero_point.reshape(())), integers)
    try:
        quantization.check()
    except ModelError as error:
        return str(error)
    return quantization


def _quantized_output(call: Any, position: int, layer: TiledLayer) -> TiledLayer | None:
    if operator_name(call) != "relax.quantize" or position != 0 or not layer.input_quantization:
        return None
    quantization = read_quantization(call)
    if isinstance(quantization, str):
        return None
    return replace(layer, output_quantization=quantization)


@relax.expr_functor.mutator
class _InputFuser(relax.PyExprMutator):
    def __init__(self, on_left: Callable[[str], None] | None) -> None:
        super().__init__()
        self._on_left = on_left

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if not is_tiled(call):
            return call
        dequantize = bound_value(self, call.args[0])
        if operator_name(dequantize) != "relax.dequantize":
            return call
        layer = read_layer(with_constants(self, call))
        quantization = read_quantization(with_constants(self, dequantize))
        if isinstance(quantization, str):
            return self._left(call, quantization)
        if layer.not_integer:
            return self._left(call, layer.not_integer)
        return replace(layer, x=dequantize.args[0], input_quantization=quantization).call()

    def _left(self, call: Any, reason: str) -> Any:
        if self._on_left is not None:
            self._on_left(reason)
        return call
