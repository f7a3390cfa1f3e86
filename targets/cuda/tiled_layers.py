"""Tiled calls → calls of CUDA kernels; those that have none go the portable way."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from tbn_compile.passes.relax import is_tiled, read_layer
from tbn_compile.passes.relax.distinct_rows import (
    DistinctRows,
    RunScale,
    distinct_rows,
)
from tbn_compile.passes.relax.epilogue_fusion import rewrite_functions
from tbn_compile.passes.relax.lower_tiled_calls import lower_call
from tbn_compile.passes.relax.tiled_layer import TiledLayer, constant_of
from tbn_compile.targets.cuda.sources import ACTIVATIONS, clip_step
from tbn_compile.targets.cuda.tiled_gemm import (
    Architecture,
    GemmProblem,
    gemm_function,
    pack_words,
    serves,
)
from tbn_compile.tile import Signs

_OPAQUE = 8


@tvm.transform.module_pass(opt_level=0)
class LowerTiledLayers:
    """Tiled Gemm → `call_tir` of a CUDA kernel, its weight packed to suit.

    Args:
        architecture: what the code will run on.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Lower in every Relax function of an IRModule."""
        return rewrite_functions(_Lowering(module, self.architecture), module)


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    def __init__(self, module: Any, architecture: Architecture) -> None:
        super().__init__(module)
        self._architecture = architecture

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if not is_tiled(call):
            return call
        layer = read_layer(call)
        weight = served_weight(layer)
        if weight is None or weight.row_scale is None:
            return lower_call(self.builder_, call)
        return self._lower(layer, weight.signs, weight.row_scale)

    def _lower(self, layer: TiledLayer, signs: Signs, row_scale: RunScale) -> Any:
        weight, plan = layer.weight, layer.plan
        x = self._as_matrix(layer)
        batch = x.ty.shape.values[0]
        problem = GemmProblem(
            dtype=layer.element_type,
            batch=int(batch) if isinstance(batch, tirx.IntImm) else None,
            rows=plan.distinct_rows,
            copies=weight.outputs // plan.distinct_rows,
            inputs=weight.inputs,
            steps=tuple(_statements(layer)),
        )
        attributes = {"op_pattern": _OPAQUE, "tirx.is_scheduled": True}
        function = gemm_function(problem, self._architecture).with_attr(attributes)
        name = self.builder_.add_func(function, "tiled_gemm")
        constants = (pack_words(signs), _row_scale(row_scale, weight.outputs), _bias(layer))
        y = relax.call_tir(
            name,
            [x, *map(relax.const, constants)],
            relax.TensorType([batch, weight.outputs], layer.element_type),
        )
        return self._reshaped(self.builder_.emit(y), layer.result_shape())

    def _as_matrix(self, layer: TiledLayer) -> Any:
        *leading, inputs = layer.x.ty.shape.values
        rows = reduce(operator.mul, leading, tirx.IntImm("int64", 1))
        return self._reshaped(layer.x, [tvm.sym.Analyzer().simplify(rows), inputs])

    def _reshaped(self, x: Any, shape: list[Any]) -> Any:
        if len(shape) == len(x.ty.shape.values):
            return x
        return self.builder_.emit(relax.op.reshape(x, shape))


def served_weight(layer: TiledLayer) -> DistinctRows | None:
    """The distinct rows of a layer that a CUDA kernel computes, or None: there is no kernel for it.

    It must be a Gemm in float16 or bfloat16 whose tile, scales and bias are constants, whose scale
    follows the outputs and whose inputs are not folded; see `serves` for the sizes.
    """
    plan, weight, tile = layer.plan, layer.weight, constant_of(layer.tile)
    if layer.window is not None or layer.input_quantization is not None or not _can_finish(layer):
        return None
    if tile is None or constant_of(layer.scale) is None or plan.distinct_columns != plan.columns:
        return None
    if not serves(layer.element_type, plan.distinct_rows, weight.outputs, weight.inputs):
        return None
    rows = distinct_rows(layer, tile)
    return rows if rows is not None and rows.row_scale is not None else None


def _can_finish(layer: TiledLayer) -> bool:
    kinds = [step.kind for step in layer.epilogue]
    if "residual" in kinds or "bias" in kinds[1:]:
        return False
    return kinds[:1] != ["bias"] or constant_of(layer.epilogue[0].operand) is not None


def _statements(layer: TiledLayer) -> list[str]:
    return [
        clip_step(*step.bounds) if step.bounds is not None else ACTIVATIONS[step.kind]
        for step in layer.epilogue
        if step.kind != "bias"
    ]


def _row_scale(scale: RunScale, outputs: int) -> Any:
    return np.repeat(scale.values, scale.run)[:outputs]


def _bias(layer: TiledLayer) -> Any:
    if not layer.epilogue or layer.epilogue[0].kind != "bias":
        return np.zeros(layer.weight.outputs, np.float32)
    bias = constant_of(layer.epilogue[0].operand)
    return np.asarray(bias).astype(np.float32)
