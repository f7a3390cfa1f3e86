"""Tiled calls → calls of CPU kernels; those that have none go the portable way."""

from __future__ import annotations

import operator
from functools import reduce
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx

from tbn_compile.passes.relax import is_tiled, read_layer
from tbn_compile.passes.relax.distinct_rows import DistinctRows, distinct_rows
from tbn_compile.passes.relax.epilogue_fusion import rewrite_functions
from tbn_compile.passes.relax.lower_tiled_calls import lower_call
from tbn_compile.passes.relax.tiled_layer import TiledLayer, Window, constant_of
from tbn_compile.targets.llvm.kernels import (
    any_padding,
    group_of,
    pad_function,
    padded_shape,
    table_function,
    table_shape,
    tiled_kernel,
)

_OPAQUE = 8
_FEWEST_GROUPED_ROWS = 4
"""With fewer distinct rows a group's lanes would lie idle."""
_FEWEST_VECTORS = 2
"""Vectors of distinct rows for which a Gemm makes tables."""
_FEWEST_USES = 9
"""Uses of a convolution's table, by taps and vectors, for which it is made."""
_FEWEST_CHANNELS = 3
_MOST_TABLE_BYTES = 2**24
"""Of the tables of one image; they take 13 bytes for each of its numbers' 4."""


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
        weight = _weight(layer)
        return lower_call(self.builder_, call) if weight is None else self._lower(layer, weight)

    def _lower(self, layer: TiledLayer, weight: DistinctRows) -> Any:
        result, shape = layer.result_type(), list(layer.result_type().shape.values)
        group = self._group(layer, weight)
        if layer.window is None:
            x = self._folded(layer, weight)
            shape = [x.ty.shape.values[0], layer.weight.outputs]
        else:
            x = self._surrounded(layer, layer.window, group)
        kernel = tiled_kernel(layer, weight, x.ty.shape.values, self._lanes, group)
        name = self._add(kernel.function, "tiled_conv" if layer.window else "tiled_gemm")
        operands = [
            self._reshaped(step.operand, shape) if step.kind == "residual" else step.operand
            for step in layer.epilogue
            if step.operand is not None
        ]
        constants = [relax.const(array, array.dtype.name) for array in kernel.constants]
        kind = relax.TensorType(shape, str(result.dtype))
        y = self.builder_.emit(relax.call_tir(name, [x, *constants, *operands], kind))
        return self._reshaped(y, list(result.shape.values))

    def _group(self, layer: TiledLayer, weight: DistinctRows) -> int:
        """Inputs of a table, if tables pay; 1 for none."""
        group = group_of(self._lanes)
        vectors = -(-weight.plan.distinct_rows // self._lanes)
        if not self._permutes:
            return 1
        if layer.window is None:
            return group if vectors >= _FEWEST_VECTORS else 1
        kernel, extents = layer.weight.shape[2:], list(layer.x.ty.shape.values)[1:]
        if not all(isinstance(extent, tirx.IntImm) for extent in extents):
            return 1
        _, *shape = table_shape(layer.window, kernel, [1, *map(int, extents)], self._lanes)
        fits = prod(map(int, shape)) * 4 <= _MOST_TABLE_BYTES
        few_channels = layer.weight.shape[1] < _FEWEST_CHANNELS
        pays = prod(kernel) * vectors >= _FEWEST_USES and not few_channels
        return group if pays and fits else 1

    def _surrounded(self, layer: TiledLayer, window: Window, group: int) -> Any:
        """The activation of a convolution with zeros around: float32, or tables of it."""
        x, kernel = layer.x, layer.weight.shape[2:]
        extents = list(x.ty.shape.values)
        if group > 1:
            x = self._as_float(x)
            function = table_function(window, kernel, extents, self._lanes)
            shape = table_shape(window, kernel, extents, self._lanes)
            name = self._add(function, "tables")
            return self.builder_.emit(relax.call_tir(name, [x], relax.TensorType(shape, "float32")))
        if not any_padding(window):
            return self._as_float(x)
        name = self._add(pad_function(window, kernel, extents, str(x.ty.dtype)), "pad")
        kind = relax.TensorType(padded_shape(window, kernel, extents), "float32")
        return self.builder_.emit(relax.call_tir(name, [x], kind))

    def _add(self, function: Any, name: str) -> Any:
        return self.builder_.add_func(function.with_attr({"op_pattern": _OPAQUE}), name)

    def _folded(self, layer: TiledLayer, weight: DistinctRows) -> Any:
        """float32[M, distinct columns]: inputs that meet the same signs, scaled and added up."""
        *leading, columns = layer.x.ty.shape.values
        rows = reduce(operator.mul, leading, tirx.IntImm("int64", 1))
        x = self._reshaped(layer.x, [rows, columns])
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

    def _reshaped(self, x: Any, shape: list[Any]) -> Any:
        if len(shape) == len(x.ty.shape.values):
            return x
        return self.builder_.emit(relax.op.reshape(x, shape))


def _weight(layer: TiledLayer) -> DistinctRows | None:
    """The distinct rows of a layer, if a CPU kernel serves it."""
    tile = constant_of(layer.tile)
    if tile is None or constant_of(layer.scale) is None or layer.pool:
        return None
    if layer.plan.groups > 1 and layer.plan.distinct_rows < _FEWEST_GROUPED_ROWS:
        return None
    return distinct_rows(layer, tile)


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
