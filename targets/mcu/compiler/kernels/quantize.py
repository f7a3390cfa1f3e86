"""float32 → int8 or uint8 without float arithmetic.

A quotient |x| / scale is rounded in two steps. A product of integers tells it to within a few
hundredths, hence its nearest integer or the one below; a table of the least floats that round to
each integer decides. The results are those of ONNX Runtime for every float, ties included, at a
tenth of what a division and a rounding take without an FPU.
"""

from __future__ import annotations

from math import frexp, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tbn_compile.passes.relax.epilogue_fusion import (
    operator_name,
    rewrite_functions,
    with_constants,
)
from tbn_compile.passes.relax.fuse_quantization import read_quantization
from tbn_compile.passes.relax.tiled_layer import Quantization, constant_of

_MAGNITUDE = 2**31 - 1
_FRACTION = 23
"""Bits of a float32 behind its exponent."""
_BIAS = 127
_OPAQUE = 8
_FIXED = 16
"""Bits of |x| in fixed point, where it is largest."""
_QUOTIENT = 24
"""Bits behind the point of a quotient."""
_NEARLY_HALF = 0.48
"""What is added before rounding down: less than a half by more than the product's error."""


@tvm.transform.module_pass(opt_level=0)
class LowerQuantize:
    """quantize of a whole tensor with a constant scale → `call_tir` of a kernel for small cores."""

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Lower in every Relax function of an IRModule."""
        return rewrite_functions(_Lowering(module), module)


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if operator_name(call) != "relax.quantize":
            return call
        resolved = with_constants(self, call)
        x, quantization = resolved.args[0], read_quantization(resolved)
        if isinstance(quantization, str) or not 2.0**-100 < quantization.scale < 2.0**100:
            return call
        # What is quantized from a constant is folded to a constant.
        if constant_of(x) is not None:
            return call
        extents = [int(extent) for extent in x.ty.shape.values]
        function = quantize_function(quantization, prod(extents)).with_attr("op_pattern", _OPAQUE)
        name = self.builder_.add_func(function, "quantize")
        constant = relax.const(thresholds(quantization), "int32")
        kind = relax.TensorType(extents, quantization.dtype)
        return relax.call_tir(name, [x, constant], kind)


def quantize_function(quantization: Quantization, elements: int) -> Any:
    """The PrimFunc for a tensor, flat.

    Args:
        quantization: with a scale far from the ends of the floats' range.
        elements: of the tensor.

    Returns:
        A function of the floats as int32[elements], `thresholds`, and the result.
    """
    zero, largest, (low, high) = quantization.zero_point, quantization.largest, quantization.limits
    # |x| 2^places stays below 2^16, and its product with the factor below 2^32.
    places = _FIXED - frexp(largest * quantization.scale)[1]
    factor = int(2.0 ** (_QUOTIENT - places) / quantization.scale)
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        x = T.arg("x", T.buffer((elements,), "int32"))
        least = T.arg("thresholds", T.buffer((largest,), "int32"))
        y = T.arg("y", T.buffer((elements,), quantization.dtype))
        magnitude, steps = (T.alloc_buffer((1,), "int32", scope="local") for _ in range(2))
        with T.serial(0, elements) as i:
            bits = T.bind(x[i])
            # Where all negative numbers become the lowest integer, they are below the threshold.
            T.buffer_store(magnitude, bits if zero == low else bits & _MAGNITUDE, [0])
            T.buffer_store(steps, tirx.const(0, "int32"), [0])
            with T.If(magnitude[0] >= least[0]), T.Then():
                _at_most(magnitude, least[largest - 1])
                shift = _BIAS + 31 - places - (magnitude[0] >> _FRACTION)
                whole = (_unsigned(magnitude[0]) << _unsigned(31 - _FRACTION)) | _unsigned(1 << 31)
                quotient = (whole >> _unsigned(shift)) * _unsigned(factor)
                rounded = quotient + _unsigned(int(_NEARLY_HALF * 2**_QUOTIENT))
                T.buffer_store(steps, (rounded >> _unsigned(_QUOTIENT)).astype("int32"), [0])
                with T.If(magnitude[0] >= least[steps[0]]), T.Then():
                    T.buffer_store(steps, steps[0] + 1, [0])
                if zero > low:
                    with T.If(bits < 0), T.Then():
                        T.buffer_store(steps, -steps[0], [0])
                    _at_most(steps, high - zero)
                    _at_least(steps, low - zero)
            T.buffer_store(y, (steps[0] + zero).astype(quantization.dtype), [i])
    return builder.get()


def thresholds(quantization: Quantization) -> npt.NDArray[np.int32]:
    """int32[largest]: the bits of the least float32 that rounds to 1, 2, ... steps."""
    wanted = np.arange(1, quantization.largest + 1)
    below = np.zeros(wanted.shape, np.int64)
    reached = np.full(wanted.shape, np.float32(np.inf).view(np.int32), np.int64)
    while (reached - below > 1).any():
        middle = (below + reached) // 2
        numbers = middle.astype(np.uint32).view(np.float32)
        is_reached = np.rint(numbers / np.float32(quantization.scale)) >= wanted
        reached, below = np.where(is_reached, middle, reached), np.where(is_reached, below, middle)
    return reached.astype(np.int32)


def _at_most(variable: Any, bound: Any) -> None:
    with T.If(variable[0] > bound), T.Then():
        T.buffer_store(variable, bound, [0])


def _at_least(variable: Any, bound: Any) -> None:
    with T.If(variable[0] < bound), T.Then():
        T.buffer_store(variable, bound, [0])


def _unsigned(value: Any) -> Any:
    return tirx.const(value, "uint32") if isinstance(value, int) else value.astype("uint32")
