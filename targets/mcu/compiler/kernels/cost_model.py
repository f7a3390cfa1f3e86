"""What kernels cost on a core: estimates of instructions, from counts in the emulator.

They rank kernels of the same layer; what all of them do, such as an activation function, is rough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tbn_compile.passes.relax.tiled_layer import TiledLayer
from tbn_compile.targets.mcu.compiler.kernels.convolution import Geometry, Strip
from tbn_compile.targets.mcu.compiler.kernels.products import GROUP, group_sizes
from tbn_compile.targets.mcu.compiler.kernels.tiled_function import extents_of
from tbn_compile.targets.mcu.cores import Core
from tbn_compile.tile import ReusePlan

_ADD_INPUT = 4.5
"""Instructions to load an input and to pick its sign, beside the addition."""
_ADD_SUM = 3
"""Instructions to load a partial sum from its table, beside the addition."""
_STORE_SUM = 3
"""Instructions to load and store the sum of a row between passes."""
_ROW = 3
"""Instructions to step to the next row."""
_TAP = 8
"""Instructions to see whether a tap meets a position."""
_COPY = 14
"""Instructions to copy an input into a strip."""
_PAD = 9
"""Instructions to see whether an input is in the padding."""
_FOLD = 5
"""Instructions to add an input to the one it is folded with, beside the addition."""
_OUTPUT = 4
"""Instructions to load scales and store an output, beside the arithmetic."""
_STEP = 2
"""Instructions of a step of the epilogue, beside the arithmetic."""
_PORTABLE = 20
"""Instructions for each weight of the portable kernel."""


@dataclass(frozen=True)
class Costs:
    """Instructions of arithmetic on the sums' type: calls of library functions without an FPU."""

    add: int
    multiply: int

    @staticmethod
    def of(core: Core) -> Costs:
        """The costs of float32 arithmetic on a core."""
        if core.has_fpu:
            return Costs(1, 1)
        return Costs(70, 130 if core.name == "cortex-m0plus" else 40)

    @staticmethod
    def of_integers(core: Core) -> Costs:
        """Likewise of integers: a product of 64 bits is a call on the smallest cores."""
        return Costs(1, 60 if core.name == "cortex-m0plus" else 8)


def gemm_cost(layer: TiledLayer, plan: ReusePlan, product: float, costs: Costs) -> int:
    """Instructions of a Gemm whose product takes `product` for one row of X."""
    *leading, _ = extents_of(layer.x.ty)
    folded = plan.columns if plan.distinct_columns < plan.columns else 0
    fold = folded * (_FOLD + costs.add)
    return round(prod(leading) * (fold + product + _outputs_cost(layer, plan, costs)))


def strip_cost(
    strip: Strip, layer: TiledLayer, plan: ReusePlan, product: float, costs: Costs
) -> int:
    """Instructions of a convolution whose product takes `product` for one patch."""
    positions = strip.geometry.batch * prod(strip.geometry.results)
    copied = _COPY * strip.inputs / strip.positions
    outputs = _outputs_cost(layer, plan, costs)
    return round(positions * (plan.groups * (copied + product) + outputs))


def column_cost(strip: Strip, layer: TiledLayer, plan: ReusePlan, costs: Costs) -> int:
    """Instructions of a convolution from tables of the columns of a strip."""
    geometry = strip.geometry
    sizes = group_sizes(strip.column)
    tabulated = strip.columns * (_tables_cost(sizes, costs) + _PAD * strip.column)
    added = geometry.kernel[-1] * len(sizes)
    row = _ROW + added * _ADD_SUM + (added - 1) * costs.add
    group = tabulated / strip.positions + plan.distinct_rows * row
    positions = geometry.batch * prod(geometry.results)
    return round(positions * (plan.groups * group + _outputs_cost(layer, plan, costs)))


def scatter_cost(
    geometry: Geometry, layer: TiledLayer, plan: ReusePlan, tables: int, costs: Costs
) -> int:
    """Instructions of a convolution by input positions."""
    sizes = group_sizes(geometry.channels)
    passes = -(-len(sizes) // tables)
    positions, results = prod(geometry.extents), prod(geometry.results)
    visited = passes * positions * prod(geometry.kernel) * _TAP
    met = prod(map(geometry.met, geometry.axes))
    row = passes * (_ROW + _STORE_SUM) + len(sizes) * (_ADD_SUM + costs.add)
    clear = results * plan.distinct_rows * _ROW
    group = (
        clear + positions * _tables_cost(sizes, costs) + visited + met * plan.distinct_rows * row
    )
    outputs = results * (_outputs_cost(layer, plan, costs) + plan.rows * plan.groups)
    return round(geometry.batch * (plan.groups * group + outputs))


def direct_cost(rows: int, inputs: int, costs: Costs) -> float:
    """Instructions to add up the inputs of each row one by one."""
    return rows * (_ROW + inputs * _ADD_INPUT + (inputs - 1) * costs.add)


def lookup_cost(rows: int, inputs: int, tables: int, costs: Costs) -> float:
    """Instructions to add them up from tables, `tables` of them in a pass over the rows."""
    sizes = group_sizes(inputs)
    passes = -(-len(sizes) // tables)
    row = passes * _ROW + len(sizes) * _ADD_SUM
    if passes == 1:
        row += (len(sizes) - 1) * costs.add
    else:
        row += len(sizes) * costs.add + (passes + 1) * _STORE_SUM
    return _tables_cost(sizes, costs) + rows * row


def portable_cost(layer: TiledLayer) -> int:
    """Instructions of the portable kernel."""
    return _PORTABLE * prod(extents_of(layer.result_type())) * layer.weight.inputs


def _tables_cost(sizes: Sequence[int], costs: Costs) -> float:
    """Loads, stores and negations; a table of all signs of four inputs takes twelve additions."""
    entries = sum(2**size for size in sizes)
    additions = {1: 0, 2: 2, 3: 6, GROUP: 12}
    return (
        sum(sizes) + 1.5 * entries + 3 * len(sizes) + costs.add * sum(additions[s] for s in sizes)
    )


def _outputs_cost(layer: TiledLayer, plan: ReusePlan, costs: Costs) -> float:
    """Instructions for all outputs of one position."""
    additions = sum(step.operand is not None for step in layer.epilogue)
    steps = len(layer.epilogue) * _STEP + additions * costs.add
    return plan.groups * plan.rows * (_OUTPUT + costs.multiply + steps)
