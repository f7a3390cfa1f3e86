"""Every kernel that can compute a tiled layer, with what it costs on a core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from tvm import te

from tbn_compile.passes.relax.kernels import compute
from tbn_compile.passes.relax.tiled_layer import TiledLayer
from tbn_compile.targets.mcu.compiler.kernels import cost_model
from tbn_compile.targets.mcu.compiler.kernels.convolution import (
    Geometry,
    Strip,
    by_columns,
    column_function,
    scatter_function,
    strip_function,
)
from tbn_compile.targets.mcu.compiler.kernels.cost_model import Costs
from tbn_compile.targets.mcu.compiler.kernels.gemm import folded_bytes, gemm_function
from tbn_compile.targets.mcu.compiler.kernels.products import GROUP, Direct, Lookup, Product
from tbn_compile.targets.mcu.compiler.kernels.tiled_function import Arrays, TiledFunction

TABLES = (2, 4, 8, 16)
"""How many tables a pass may use."""

_COLUMN_TABLES = 4
"""The most tables of a column whose code is written out."""


@dataclass(frozen=True)
class Candidate:
    """A kernel that could be built.

    Attributes:
        name: hint for the C function.
        description: one line for reports.
        workspace_bytes: of RAM beside its arguments.
        instructions: an estimate for one call.
        build: gives the PrimFunc and its constants.
    """

    name: str
    description: str
    workspace_bytes: int
    instructions: int
    build: Callable[[], tuple[Any, Arrays]]


def candidates(function: TiledFunction, costs: Costs) -> Iterator[Candidate]:
    """The kernels for a layer whose distinct rows are known.

    Args:
        function: the layer.
        costs: of the arithmetic on a core.
    """
    window = function.layer.window
    if window is None:
        return _gemms(function, costs)
    return _convs(function, Geometry.of(function.layer, window), costs)


def portable(layer: TiledLayer, constants: Arrays) -> Candidate:
    """The tensor expression of any target, which also takes scales that change inside rows.

    Args:
        layer: the call.
        constants: its tile and scale.
    """
    name = "tiled_gemm" if layer.window is None else "tiled_conv"
    operands = [step.operand for step in layer.epilogue if step.operand is not None]

    def build() -> tuple[Any, Arrays]:
        tensors = [
            te.placeholder(tensor.ty.shape.values, str(tensor.ty.dtype))
            for tensor in (layer.x, layer.tile, layer.scale, *operands)
        ]
        return te.create_prim_func([*tensors, compute(layer, *tensors)]), constants

    instructions = cost_model.portable_cost(layer)
    return Candidate(name, "signed inputs, scales inside rows", 0, instructions, build)


def _gemms(function: TiledFunction, costs: Costs) -> Iterator[Candidate]:
    plan = function.weight.plan
    for way in _ways(function, costs):
        yield Candidate(
            f"tiled_gemm_{way.name}",
            way.description,
            way.workspace_bytes + folded_bytes(function),
            cost_model.gemm_cost(function.layer, plan, way.instructions, costs),
            partial(gemm_function, function, way.product),
        )


def _convs(function: TiledFunction, geometry: Geometry, costs: Costs) -> Iterator[Candidate]:
    plan = function.weight.plan
    patches = by_columns(function, geometry)
    input_bytes = np.dtype(function.arithmetic.inputs).itemsize
    for positions in sorted({1, geometry.results[-1] if geometry.overlaps else 1}):
        strip = Strip(geometry, positions)
        for way in _ways(patches, costs):
            yield Candidate(
                f"tiled_conv_{way.name}",
                f"{'patches' if positions == 1 else 'rows of patches'}, {way.description}",
                way.workspace_bytes + strip.inputs * input_bytes,
                cost_model.strip_cost(strip, function.layer, plan, way.instructions, costs),
                partial(strip_function, patches, way.product, strip),
            )
    if geometry.overlaps and len(strip.column_groups) <= _COLUMN_TABLES:
        tables = strip.columns * len(strip.column_groups)
        yield Candidate(
            "tiled_conv_columns",
            f"rows of patches, {_describe(tables, strip.column)}",
            tables * _table_bytes(function, strip.column),
            cost_model.column_cost(strip, function.layer, plan, costs),
            partial(column_function, patches, strip),
        )
    sums = function.sums_bytes(plan.distinct_rows * prod(geometry.results))
    for tables, table_bytes in _tables(function, geometry.channels):
        yield Candidate(
            "tiled_conv_scatter",
            f"input positions, {_describe(tables, geometry.channels)}",
            sums + table_bytes,
            cost_model.scatter_cost(geometry, function.layer, plan, tables, costs),
            partial(scatter_function, function, geometry, tables),
        )


@dataclass(frozen=True)
class _Way:
    """A way to add inputs up, with what it takes for one set of inputs."""

    name: str
    description: str
    product: Product
    workspace_bytes: int
    instructions: float


def _ways(function: TiledFunction, costs: Costs) -> Iterator[_Way]:
    weight = function.weight
    rows, inputs = weight.plan.distinct_rows, weight.plan.distinct_columns
    cost = cost_model.direct_cost(rows, inputs, costs)
    yield _Way("direct", "signed inputs", Direct(weight), 0, cost)
    for tables, table_bytes in _tables(function, inputs):
        product = Lookup(weight, tables)
        sums = 0 if product.is_single_pass else function.sums_bytes(rows)
        cost = cost_model.lookup_cost(rows, inputs, tables, costs)
        yield _Way("lookup", _describe(tables, inputs), product, table_bytes + sums, cost)


def _tables(function: TiledFunction, inputs: int) -> Iterator[tuple[int, int]]:
    """Numbers of tables that a pass may use for so many inputs, and their bytes."""
    groups = -(-inputs // GROUP)
    for tables in sorted({min(tables, groups) for tables in TABLES}):
        yield tables, tables * _table_bytes(function, inputs)


def _table_bytes(function: TiledFunction, inputs: int) -> int:
    return _entries(inputs) * np.dtype(function.arithmetic.table).itemsize


def _describe(tables: int, inputs: int) -> str:
    return f"{tables} tables of {_entries(inputs)} sums"


def _entries(inputs: int) -> int:
    """Sums in a table, where the inputs may be fewer than a group's."""
    return 2 ** min(inputs, GROUP)
