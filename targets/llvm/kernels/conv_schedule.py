"""How a convolution is cut up: the cheapest of some ways, by a count of vector instructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod

from tbn_compile.targets.llvm.kernels.codes import CodeLayout
from tbn_compile.targets.llvm.kernels.grid import Axis, Grid

_MOST_INPUTS = 6
_TABLES = (1, 2, 4, 8, 16)
_VECTORS = (4, 2)
_FIRST_LEVEL_BYTES = 32 * 1024
_SECOND_LEVEL_BYTES = 256 * 1024
_MOST_POSITIONS = 512
_MOST_TAPS = 2**12
_MOST_BYTES = 2**26


@dataclass(frozen=True)
class Shape:
    """What a schedule depends on.

    Attributes:
        rows: distinct rows of a group.
        channels: of a group.
        kernel, strides, dilations: one for each spatial axis.
        outputs: extents of the result along them; None where only the call tells.
        lanes: float32 numbers of a vector register.
    """

    rows: int
    channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    outputs: tuple[int | None, ...]
    lanes: int


@dataclass(frozen=True)
class Schedule:
    """A way to cut a convolution up.

    Attributes:
        layout: which channels share a table, and how many tables there are at a time.
        grid: the block of outputs.
    """

    layout: CodeLayout
    grid: Grid


@cache
def choose_schedule(shape: Shape) -> Schedule | None:
    """The cheapest schedule; None if all need too much memory, or the kernel has too many taps."""
    if prod(shape.kernel) > _MOST_TAPS:
        return None
    schedules = [each for each in _schedules(shape) if _bytes(shape, each) <= _MOST_BYTES]
    return min(schedules, key=lambda schedule: _cost(shape, schedule), default=None)


def _schedules(shape: Shape) -> Iterator[Schedule]:
    axes = list(zip(shape.kernel, shape.strides, shape.dilations, strict=True))
    grids = [
        Grid(tuple(Axis(*axis, count) for axis, count in zip(axes, block, strict=True)), *vector)
        for block in _blocks(shape)
        for vector in product((shape.lanes,), _VECTORS)
    ]
    small = [grid for grid in grids if grid.positions <= _MOST_POSITIONS] or grids[:1]
    for inputs in range(1, min(_MOST_INPUTS, shape.channels) + 1):
        for tables in _TABLES:
            if tables == 1 or tables * inputs < shape.channels + inputs:
                layout = CodeLayout(shape.channels, shape.kernel, inputs, tables)
                yield from (Schedule(layout, grid) for grid in small)


def _blocks(shape: Shape) -> Iterator[tuple[int, ...]]:
    """Extents of blocks: of the last axis the whole or parts, of the one before some, else one."""
    leading = [1] * (len(shape.outputs) - 2)
    for heights in _heights(shape.outputs[-2]) if len(shape.outputs) > 1 else [()]:
        for width in _widths(shape.outputs[-1], shape.lanes):
            yield (*leading, *heights, width)


def _heights(extent: int | None) -> list[tuple[int, ...]]:
    if extent is None:
        return [(1,)]
    return [(count,) for count in sorted({min(extent, n) for n in (1, 2, 3, 4, 5, 7, 8, 14, 16)})]


def _widths(extent: int | None, lanes: int) -> list[int]:
    if extent is None:
        return [4 * lanes]
    parts = {-(-extent // count) for count in (1, 2, 3, 4)}
    return sorted(parts | {n * lanes for n in (2, 4, 8) if n * lanes < extent})


def _cost(shape: Shape, schedule: Schedule) -> float:
    """Vector instructions of all blocks, those that miss the cache counted more than once."""
    layout, grid = schedule.layout, schedule.grid
    vectors, length = grid.positions / grid.lanes, grid.length / grid.lanes
    taps, tables = prod(shape.kernel), layout.chunks * layout.tables
    held = _held_bytes(schedule)
    miss = 1.0 if held <= _FIRST_LEVEL_BYTES else 1.8 if held <= _SECOND_LEVEL_BYTES else 4.0
    load = (0.7 if taps == 1 else 1.1) * miss
    lookups = shape.rows * tables * taps * vectors * (load + 0.6 / grid.vectors)
    spill = 2.0 if shape.rows * grid.positions * 4 <= _SECOND_LEVEL_BYTES else 4.0
    sums = shape.rows * layout.chunks * vectors * spill
    building = tables * grid.planes * 2**layout.inputs * length * 1.2 * miss
    lines = tables * layout.inputs * grid.planes * prod(grid.extents[:-1])
    start = 10.0 if taps > 1 else 14.0  # with one tap no block reads what another has fetched
    copying = lines * (start + 3.0 * grid.extents[-1] / grid.lanes)
    block = lookups + sums + building + copying
    return block * _block_count(shape.outputs, grid.outputs)


def _held_bytes(schedule: Schedule) -> int:
    """Of the tables and of the inputs that they are made of."""
    layout, grid = schedule.layout, schedule.grid
    arrays = layout.tables * grid.planes * (2**layout.inputs + layout.inputs)
    return arrays * grid.length * 4


def _bytes(shape: Shape, schedule: Schedule) -> int:
    """Of all that a kernel allocates."""
    return _held_bytes(schedule) + shape.rows * schedule.grid.positions * 4


def _block_count(extents: Sequence[int | None], block: Sequence[int]) -> float:
    counts = [
        1.0 / part if extent is None else -(-extent // part)
        for extent, part in zip(extents, block, strict=True)
    ]
    return prod(counts)
