"""Tiled calls → calls of CUDA kernels; those that have none go the portable way."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
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
from tbn_compile.passes.relax.lower_tiled_calls import lower_call, reshaped
from tbn_compile.passes.relax.tiled_layer import TiledLayer, Window, constant_of
from tbn_compile.targets.compiled.scheduling import FINISHED_KERNEL
from tbn_compile.targets.cuda.sources import ACTIVATIONS, clip_step
from tbn_compile.targets.cuda.tiled_conv import ConvProblem, conv_function, order_inputs
from tbn_compile.targets.cuda.tiled_gemm import (
    GemmProblem,
    gemm_function,
    pack_words,
    serves,
    sums_shape,
)
from tbn_compile.tile import Signs


@tvm.transform.module_pass(opt_level=0)
class LowerTiledLayers:
    """Tiled Gemm and Conv → `call_tir` of a CUDA kernel, the weight packed to suit.

    Args:
        architectures: compute capabilities that there will be machine code for.
    """

    def __init__(self, architectures: Sequence[str]) -> None:
        self.architectures = tuple(architectures)

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Lower in every Relax function of an IRModule."""
        return rewrite_functions(_Lowering(module, self.architectures), module)


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    def __init__(self, module: Any, architectures: tuple[str, ...]) -> None:
        super().__init__(module)
        self._architectures = architectures

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if not is_tiled(call):
            return call
        layer = read_layer(call)
        weight = served_weight(layer)
        if weight is None or weight.row_scale is None:
            return lower_call(self.builder_, call)
        if layer.window is None:
            return self._lower_gemm(layer, weight.signs, weight.row_scale)
        problem = _conv_problem(layer, layer.window)
        if problem is None:
            return lower_call(self.builder_, call)
        function = conv_function(problem)
        signs = order_inputs(weight.signs, problem.channels)
        return self._call(function, layer, layer.x, signs, weight.row_scale, layer.result_shape())

    def _lower_gemm(self, layer: TiledLayer, signs: Signs, row_scale: RunScale) -> Any:
        weight, plan = layer.weight, layer.plan
        x = self._as_matrix(layer)
        batch = x.ty.shape.values[0]
        problem = GemmProblem(
            dtype=layer.element_type,
            batch=_static(batch),
            rows=plan.distinct_rows,
            copies=weight.outputs // plan.distinct_rows,
            inputs=weight.inputs,
            steps=tuple(_statements(layer)),
        )
        function = gemm_function(problem, self._architectures)
        sums = sums_shape(problem)
        y = self._call(function, layer, x, signs, row_scale, [batch, weight.outputs], sums)
        return reshaped(self.builder_, y, layer.result_shape())

    def _call(
        self,
        function: Any,
        layer: TiledLayer,
        x: Any,
        signs: Signs,
        row_scale: RunScale,
        shape: list[Any],
        sums: tuple[int, ...] | None = None,
    ) -> Any:
        """A variable bound to `function(x, words, scale, bias)`, of this shape.

        Where the function needs memory for sums, that is a second result which nobody reads.
        """
        hint = "tiled_conv" if layer.window else "tiled_gemm"
        name = self.builder_.add_func(function.with_attr(FINISHED_KERNEL), hint)
        outputs = layer.weight.outputs
        constants = (pack_words(signs), _row_scale(row_scale, outputs), _bias(layer))
        arguments = [x, *map(relax.const, constants)]
        result = relax.TensorType(shape, layer.element_type)
        if sums is None:
            return self.builder_.emit(relax.call_tir(name, arguments, result))
        results = [result, relax.TensorType(sums, "float32")]
        both = self.builder_.emit(relax.call_tir(name, arguments, results))
        return self.builder_.emit(relax.TupleGetItem(both, 0))

    def _as_matrix(self, layer: TiledLayer) -> Any:
        *leading, inputs = layer.x.ty.shape.values
        rows = reduce(operator.mul, leading, tirx.IntImm("int64", 1))
        return reshaped(self.builder_, layer.x, [tvm.sym.Analyzer().simplify(rows), inputs])


def served_weight(layer: TiledLayer) -> DistinctRows | None:
    """The distinct rows of a layer that a CUDA kernel computes, or None: there is no kernel for it.

    Tile, scales and bias must be constants, the scale must follow the outputs, and there must be
    one group; see `serves` for the sizes. Inputs that meet the same signs are not added up first.
    """
    plan, weight, tile = layer.plan, layer.weight, constant_of(layer.tile)
    if plan.groups > 1 or layer.input_quantization is not None or not _can_finish(layer):
        return None
    if tile is None or constant_of(layer.scale) is None:
        return None
    if not serves(layer.element_type, plan.distinct_rows, weight.outputs, weight.inputs):
        return None
    whole_rows = replace(layer, plan=replace(plan, distinct_columns=plan.columns))
    rows = distinct_rows(whole_rows, tile)
    return rows if rows is not None and rows.row_scale is not None else None


def _conv_problem(layer: TiledLayer, window: Window) -> ConvProblem | None:
    """What the kernel for convolutions takes, or None: it does not serve this one."""
    weight, rows = layer.weight, layer.plan.distinct_rows
    batch, _, *spatial = layer.x.ty.shape.values
    places = window.place(spatial, weight.shape[2:])
    extents = _all_static(spatial)
    pads, results = (_all_static(values) for values in zip(*places, strict=True))
    if extents is None or pads is None or results is None:
        return None
    problem = ConvProblem(
        dtype=layer.element_type,
        batch=_static(batch),
        channels=weight.shape[1],
        extents=extents,
        results=results,
        kernel=weight.shape[2:],
        strides=window.strides,
        dilations=window.dilations,
        pads=pads,
        rows=rows,
        copies=weight.outputs // rows,
        steps=tuple(_statements(layer)),
    )
    return problem if problem.served else None


def _static(extent: Any) -> int | None:
    return int(extent) if isinstance(extent, int | tirx.IntImm) else None


def _all_static(extents: Sequence[Any]) -> tuple[int, ...] | None:
    known = tuple(int(extent) for extent in extents if _static(extent) is not None)
    return known if len(known) == len(extents) else None


def _can_finish(layer: TiledLayer) -> bool:
    kinds = [step.kind for step in layer.epilogue]
    if layer.pool or "residual" in kinds or "bias" in kinds[1:]:
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
