"""Tiled calls → calls of CPU kernels; those that have none go the portable way."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx

from tbn_compile.passes.relax import is_tiled, read_layer
from tbn_compile.passes.relax.distinct_rows import DistinctRows, distinct_rows
from tbn_compile.passes.relax.epilogue_fusion import rewrite_functions
from tbn_compile.passes.relax.lower_tiled_calls import lower_call, reshaped
from tbn_compile.passes.relax.tiled_layer import TiledLayer, Window, constant_of
from tbn_compile.targets.compiled.scheduling import FINISHED_KERNEL
from tbn_compile.targets.llvm.kernels import (
    Kernel,
    Mixture,
    Schedule,
    Shape,
    choose_schedule,
    conv_kernel,
    gemm_kernel,
    group_of,
    mixed_rows,
)
from tbn_compile.targets.llvm.kernels.extents import known

_FEWEST_VECTORS = 2
"""Vectors of distinct rows for which a Gemm makes tables."""


@tvm.transform.module_pass(opt_level=0)
class LowerTiledLayers:
    """Tiled call → `call_tir` of a CPU kernel, its weight packed to suit.

    Args:
        lanes: float32 numbers of a vector register.
        permutes: whether the processor can pick a vector's entries.
    """

    def __init__(self, lanes: int, permutes: bool) -> None:
        self.lanes = lanes
        self.permutes = permutes

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Lower in every Relax function of an IRModule."""
        return rewrite_functions(_Lowering(module, self.lanes, self.permutes), module)


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    def __init__(self, module: Any, lanes: int, permutes: bool) -> None:
        super().__init__(module)
        self._lanes = lanes
        self._permutes = permutes

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if not is_tiled(call):
            return call
        layer = read_layer(call)
        found = self._kernel(layer)
        return lower_call(self.builder_, call) if found is None else self._call(layer, *found)

    def _kernel(self, layer: TiledLayer) -> tuple[Kernel, Any] | None:
        """A layer's kernel and the activation that it takes; None: no CPU kernel serves it."""
        rows = _rows(layer)
        if rows is None:
            return None
        weight, mixture = rows
        if layer.window is None:
            x, group = self._folded(layer, weight), self._group(weight)
            return gemm_kernel(layer, weight, x.ty.shape.values, self._lanes, group, mixture), x
        schedule = _schedule(layer, layer.window, weight.plan.distinct_rows, self._lanes)
        if schedule is None:
            return None
        return conv_kernel(layer, layer.window, weight, schedule, mixture), layer.x

    def _call(self, layer: TiledLayer, kernel: Kernel, x: Any) -> Any:
        result, window = layer.result_type(), layer.window
        shape = list(result.shape.values)
        if window is None:
            shape = [x.ty.shape.values[0], layer.weight.outputs]
        name = self._add(kernel.function, "tiled_conv" if window else "tiled_gemm")
        operands = [
            reshaped(self.builder_, step.operand, shape)
            if step.kind == "residual"
            else step.operand
            for step in layer.epilogue
            if step.operand is not None
        ]
        constants = [relax.const(array, array.dtype.name) for array in kernel.constants]
        kind = relax.TensorType(shape, str(result.dtype))
        y = self.builder_.emit(relax.call_tir(name, [x, *constants, *operands], kind))
        return reshaped(self.builder_, y, list(result.shape.values))

    def _group(self, weight: DistinctRows) -> int:
        """Inputs of a table of a Gemm, if tables pay; 1 for none."""
        vectors = -(-weight.plan.distinct_rows // self._lanes)
        return group_of(self._lanes) if self._permutes and vectors >= _FEWEST_VECTORS else 1

    def _add(self, function: Any, name: str) -> Any:
        return self.builder_.add_func(function.with_attr(FINISHED_KERNEL), name)

    def _folded(self, layer: TiledLayer, weight: DistinctRows) -> Any:
        """float32[M, distinct columns]: inputs that meet the same signs, scaled and added up."""
        *leading, columns = layer.x.ty.shape.values
        rows = reduce(operator.mul, leading, tirx.IntImm("int64", 1))
        x = reshaped(self.builder_, layer.x, [rows, columns])
        plan, scale = weight.plan, weight.column_scale
        if scale is not None:
            values = np.repeat(scale.values, scale.run)[: plan.columns]
            x = self.builder_.emit_te(_scaled, x, relax.const(values))
        if plan.distinct_columns < plan.columns:
            return self.builder_.emit_te(_fold, x, plan.distinct_columns)
        return self._as_float(x)

    def _as_float(self, x: Any) -> Any:
        if str(x.ty.dtype) == "float32":
            return x
        return self.builder_.emit(relax.op.astype(x, "float32"))


def _schedule(layer: TiledLayer, window: Window, rows: int, lanes: int) -> Schedule | None:
    """How a convolution is cut up; with a kernel of one tap, the image is one row."""
    _, channels, *kernel = layer.weight.shape
    outputs = list(layer.result_type().shape.values)[2:]
    moves = (*kernel, *window.strides, 1 + max(window.pads, default=0))
    if max(moves) == 1:
        kernel, outputs = kernel[:1], [reduce(operator.mul, outputs)]
    axes = len(kernel)
    return choose_schedule(
        Shape(
            rows=rows,
            channels=channels,
            kernel=tuple(kernel),
            strides=window.strides[:axes],
            dilations=window.dilations[:axes],
            outputs=tuple(map(known, outputs)),
            lanes=lanes,
        )
    )


def _rows(layer: TiledLayer) -> tuple[DistinctRows, Mixture | None] | None:
    """The distinct rows of a layer, and how outputs are mixed if they are no copies of them.

    None: no CPU kernel serves it.
    """
    tile = constant_of(layer.tile)
    if tile is None or constant_of(layer.scale) is None or layer.pool:
        return None
    rows = distinct_rows(layer, tile)
    return mixed_rows(layer, tile) if rows is None else (rows, None)


def _scaled(x: Any, scale: Any) -> Any:
    return te.compute(x.shape, lambda m, k: x[m, k].astype("float32") * scale[k], name="scaled")


def _fold(x: Any, distinct: int) -> Any:
    columns = int(x.shape[1])

    def fold(row: Any, column: Any) -> Any:
        axis = te.reduce_axis((0, -(-columns // distinct)), name="fold")
        source = axis * distinct + column
        value = tirx.if_then_else(source < columns, x[row, source].astype("float32"), 0.0)
        return te.sum(value, axis=[axis])

    return te.compute((x.shape[0], distinct), fold, name="folded")
