"""Gemm: fold the inputs, add them up for the distinct rows, write scaled copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from tbn_compile.targets.mcu.compiler.kernels.arithmetic import scale_at
from tbn_compile.targets.mcu.compiler.kernels.products import Load, Product, grid
from tbn_compile.targets.mcu.compiler.kernels.tiled_function import (
    Arrays,
    Outputs,
    Parameters,
    TiledFunction,
    extents_of,
)


def gemm_function(function: TiledFunction, product: Product) -> tuple[Any, Arrays]:
    """Y = epilogue(X · Wᵀ), one row of X after another.

    Args:
        function: the layer.
        product: how inputs are added up.

    Returns:
        The PrimFunc and its constants.
    """
    *leading, _ = extents_of(function.layer.x.ty)

    def body(parameters: Parameters) -> None:
        workspace = function.allocate(product)
        folded = _allocate_folded(function)
        with grid(leading) as place:
            load = _fold(parameters, folded, place)
            outputs = Outputs(parameters, 0, lambda output: (*place, output))
            outputs.add_up(product, workspace, load, 0)

    return function.write(product.constants, body)


def folded_bytes(function: TiledFunction) -> int:
    """Workspace for the folded inputs."""
    if not _folds(function):
        return 0
    return function.weight.plan.distinct_columns * np.dtype(function.arithmetic.sums).itemsize


def _allocate_folded(function: TiledFunction) -> Any:
    """A buffer for folded or scaled inputs, or None where inputs are used as they are."""
    if not _folds(function):
        return None
    return T.alloc_buffer((function.weight.plan.distinct_columns,), function.arithmetic.sums)


def _folds(function: TiledFunction) -> bool:
    plan = function.weight.plan
    return plan.distinct_columns < plan.columns or function.weight.column_scale is not None


def _fold(parameters: Parameters, folded: Any, place: Sequence[Any]) -> Load:
    """The inputs of one row of X, those that meet the same signs added up."""
    if folded is None:
        return lambda k: parameters.input(*place, k)
    weight = parameters.function.weight
    scale, distinct = weight.column_scale, weight.plan.distinct_columns

    def term(column: Any) -> Any:
        value = parameters.input(*place, column)
        if scale is None:
            return value
        return value * scale_at(scale, parameters.column_scale[0], column)

    with T.serial(0, distinct) as k:
        T.buffer_store(folded, term(k), [k])
    repeats, rest = divmod(weight.plan.columns, distinct)
    if repeats > 1:
        with grid((repeats - 1, distinct)) as (repeat, k):
            T.buffer_store(folded, folded[k] + term((repeat + 1) * distinct + k), [k])
    if rest:
        with T.serial(0, rest) as k:
            T.buffer_store(folded, folded[k] + term(repeats * distinct + k), [k])
    return lambda k: folded[k]
