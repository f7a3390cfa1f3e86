"""Find the tile in a dense weight, or say in words why there is none.

Detection is exact: a returned tile expands to the very bits of the weight. The search is linear in
the weight's size apart from a bounded number of candidates.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd, isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from tbn_compile.tile import Bits, Floats, Layout, Signs, TiledBinaryWeight, pack_bits

Symbols = npt.NDArray[np.uint8]
_WILD = np.uint8(2)
_ANCHOR = 64
_SAMPLE = 65_536
_WORK = 2**31
_SMALLEST_GAIN = 4


@dataclass(frozen=True)
class NotTiled:
    """Why a weight has no tile, as a phrase that completes "left alone: ..."."""

    reason: str


def detect_tile(
    weight: Floats, layouts: tuple[Layout, ...] = ("NK",)
) -> TiledBinaryWeight | NotTiled:
    """Find the smallest exact tile of a weight.

    Args:
        weight: float[N, K] or float[N, K1, K2, ...], float32, float16 or bfloat16.
        layouts: the stored orders to try; "KN" only for a weight of two axes.

    Returns:
        The tile with the largest p (the fewest stored bytes), or the reason why there is none.
    """
    problem = _reject(weight)
    if problem:
        return NotTiled(problem)
    found = [tile for layout in layouts for tile in _tiles(weight, layout)]
    if not found:
        return NotTiled("weights have no common magnitude per layer, row or tile")
    best = min(found, key=lambda tile: (tile.stored_bytes, tile.tile_length))
    positive = best.signs()
    if positive.all() or not positive.any():
        return NotTiled("all weights have the same sign: a constant, not a tile")
    if best.stored_bytes * _SMALLEST_GAIN > weight.nbytes:
        return NotTiled(
            f"a tile would need {best.stored_bytes} of the weight's {weight.nbytes} bytes"
        )
    if not np.array_equal(best.matrix().reshape(weight.shape), weight):
        raise AssertionError("detected tile does not expand to its weight")
    return best


def find_window(weight: TiledBinaryWeight, tile: Signs) -> int | None:
    """Where a weight's signs stand in a longer, endlessly repeated tile.

    Args:
        weight: the weight to place.
        tile: bool[q], the signs of the longer tile.

    Returns:
        The offset, or None if the weight is no window on the tile.
    """
    unit = weight.signs()[: min(weight.size, weight.tile_length)]
    cycle = np.resize(tile, tile.size + unit.size - 1)
    offset = cycle.tobytes().find(unit.tobytes())
    if offset < 0:
        return None
    whole = np.resize(tile, offset + weight.size)[offset:]
    return offset if np.array_equal(whole, weight.signs()) else None


def smallest_period(signs: Signs) -> int:
    """The length of the shortest tile that repeats to these signs; their number if none does.

    A tile that does not divide the whole counts only if it repeats, or if 64 signs or more confirm
    it: a shorter agreement is chance.
    """
    return next(_periods(signs.view(np.uint8), (0,), signs.size), signs.size)


def _reject(weight: Floats) -> str | None:
    if weight.size < 2:
        return "a single weight"
    magnitudes = _magnitudes(weight)
    infinity = _magnitudes(np.asarray([np.inf], dtype=weight.dtype))[0]
    sample = magnitudes[:_SAMPLE]
    if np.count_nonzero(sample[1:] != sample[:-1]) * 2 > sample.size and sample.size > 16:
        return f"magnitudes differ: {np.unique(sample).size} values in the first {sample.size}"
    if (magnitudes >= infinity).any():
        return "weights are not finite"
    if not magnitudes.any():
        return "all weights are zero"
    return None


def _magnitudes(weight: Floats) -> npt.NDArray[Any]:
    """The weight without its sign bits, as unsigned integers that order like the magnitudes."""
    kind = np.dtype(f"u{weight.dtype.itemsize}")
    flat = np.ascontiguousarray(weight).reshape(-1).view(kind)
    return flat & kind.type(2 ** (8 * kind.itemsize - 1) - 1)


def _tiles(weight: Floats, layout: Layout) -> Iterator[TiledBinaryWeight]:
    stored = np.ascontiguousarray(weight if layout == "NK" else weight.T)
    flat, magnitudes = stored.reshape(-1), _magnitudes(stored)
    positive = flat > 0
    outputs = weight.shape[0]
    changes = np.flatnonzero(magnitudes[1:] != magnitudes[:-1]) + 1
    zeros = magnitudes == 0
    if not zeros.any():
        yield from _plain_tiles(flat, positive, changes, stored.shape, layout)
    yield from _flipped_tiles(flat, positive, zeros, changes, stored.shape, layout, outputs)


def _plain_tiles(
    flat: Floats,
    positive: Signs,
    changes: npt.NDArray[np.int64],
    shape: tuple[int, ...],
    layout: Layout,
) -> Iterator[TiledBinaryWeight]:
    """Tiles whose scales are all positive: per layer, per tile, or per run of equal magnitudes."""
    if changes.size * _SMALLEST_GAIN > flat.size:
        return
    length = smallest_period(positive)
    if changes.size == 0:
        yield _weight(positive, length, 0, np.abs(flat[:1]), flat.size, 0, shape, layout)
        return
    start = int(-changes[0] % length)
    if not ((changes + start) % length).any():
        scale = np.abs(flat[_run_starts(flat.size, length, start)])
        yield _weight(positive, length, start, scale, length, start, shape, layout)
    run = int(np.gcd.reduce(changes))
    yield _weight(positive, length, 0, np.abs(flat[::run]), run, 0, shape, layout)


def _run_starts(size: int, run: int, offset: int) -> npt.NDArray[np.int64]:
    """The first element of each run of `run` elements when the first run began `offset` earlier."""
    return np.maximum(np.arange(-(-(size + offset) // run)) * run - offset, 0)


def _flipped_tiles(
    flat: Floats,
    positive: Signs,
    zeros: Signs,
    changes: npt.NDArray[np.int64],
    shape: tuple[int, ...],
    layout: Layout,
    outputs: int,
) -> Iterator[TiledBinaryWeight]:
    """Tiles whose scale belongs to a row of [N, K], or a run inside it, and may be negative."""
    inputs = flat.size // outputs
    if inputs < 2:
        return
    run = _scale_run(flat, changes, layout, outputs)
    if run is None or flat.size // run > flat.size // _SMALLEST_GAIN and layout == "NK":
        return
    grid = positive.reshape(outputs, inputs) if layout == "NK" else positive.reshape(inputs, -1).T
    empty = zeros.reshape(outputs, inputs) if layout == "NK" else zeros.reshape(inputs, -1).T
    if (empty.any(axis=1) != empty.all(axis=1)).any():
        return
    empty_rows = empty.all(axis=1)
    for length in _relative_periods(grid, empty_rows, layout):
        flips = _solve_flips(grid, empty_rows, length, layout)
        if flips is None:
            continue
        unflipped = grid ^ flips[:, None]
        tile = _collect_tile(unflipped, empty_rows, length, layout)
        sign = np.where(flips, -1, 1)
        if layout == "KN":
            scale, run = np.abs(flat[:outputs]) * sign, 1
        else:
            scale = np.abs(flat[::run]) * np.repeat(sign, inputs // run)
        scale = scale.astype(flat.dtype)
        yield TiledBinaryWeight(pack_bits(tile), shape, length, scale, run, layout=layout)
        return


def _scale_run(
    flat: Floats, changes: npt.NDArray[np.int64], layout: Layout, outputs: int
) -> int | None:
    """The longest run inside a row that shares one magnitude; None if no such grid fits."""
    inputs = flat.size // outputs
    if layout == "NK":
        return gcd(inputs, int(np.gcd.reduce(changes))) if changes.size else inputs
    magnitudes = _magnitudes(flat).reshape(inputs, outputs)
    return 1 if (magnitudes == magnitudes[0]).all() else None


def _relative_periods(grid: Signs, empty_rows: Signs, layout: Layout) -> Iterator[int]:
    """Candidate tile lengths of signs whose rows may be flipped: last the whole weight.

    The product of neighbouring signs of one row does not change with the row's flip, so its period
    is the tile's.
    """
    outputs, inputs = grid.shape
    if layout == "KN":
        symbols = (grid[:, 1:] ^ grid[:, :-1]).T.astype(np.uint8)
        symbols[:, empty_rows] = _WILD
        yield from _periods(symbols.reshape(-1), (0,), grid.size)
        yield grid.size
        return
    symbols = np.full(grid.shape, _WILD)
    symbols[:, :-1] = grid[:, 1:] ^ grid[:, :-1]
    symbols[empty_rows] = _WILD
    first = int(np.argmin(empty_rows)) * inputs
    yield from _periods(symbols.reshape(-1), (first, first + inputs // 2), grid.size, inputs)
    yield grid.size


def _periods(
    symbols: Symbols, anchors: tuple[int, ...], size: int, inputs: int = 0
) -> Iterator[int]:
    """Periods of a sequence with wildcards, shortest first.

    Args:
        symbols: uint8[L] of 0, 1 and the wildcard 2.
        anchors: positions whose neighbourhood is searched for again; one of them must repeat
            without meeting a wildcard.
        size: the number of weights, of which an exact tile is a divisor.
        inputs: row length where each row ends in a wildcard, else 0.
    """
    length = min(_ANCHOR, max(1, (inputs - 1) // 2) if inputs else max(1, symbols.size // 4))
    text = symbols.tobytes()
    tried = heapq.merge(
        _divisors(size), *(_occurrences(text, start, length, size) for start in anchors)
    )
    exhaustive = not (symbols == _WILD).any()
    last = 0
    budget = max(1024, _WORK // symbols.size)
    for period in tried:
        if period == last or period >= size:
            continue
        last, budget = period, budget - 1
        if budget < 0 and size % period:
            continue
        exact = exhaustive or (inputs > 0 and period % inputs == 0)
        if _worthwhile(period, size) and _repeats(symbols, text, period, exact):
            yield period


def _worthwhile(period: int, size: int) -> bool:
    return size % period == 0 or 2 * period <= size or size - period >= _ANCHOR


def _repeats(symbols: Symbols, text: bytes, period: int, exact: bool) -> bool:
    view = memoryview(text)
    if period >= symbols.size:
        return False
    if exact and view[period:] == view[:-period]:
        return True
    if exact and not (symbols[:_SAMPLE] == _WILD).any():
        return False
    later, earlier = symbols[period:], symbols[:-period]
    for start in range(0, later.size, _SAMPLE):
        one, two = later[start : start + _SAMPLE], earlier[start : start + _SAMPLE]
        if ((one != two) & (one != _WILD) & (two != _WILD)).any():
            return False
    return True


def _occurrences(text: bytes, start: int, length: int, size: int) -> Iterator[int]:
    """Distances at which the `length` symbols at `start` stand again."""
    anchor = text[start : start + length]
    if _WILD in anchor or len(anchor) < length:
        return
    found = text.find(anchor, start + 1)
    while found >= 0 and found - start < size:
        yield found - start
        found = text.find(anchor, found + 1)


def _divisors(number: int) -> Iterator[int]:
    """All divisors but the number itself, ascending."""
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    yield from small
    for n in reversed(small):
        if n * n != number and n > 1:
            yield number // n


def _phases(row: int, grid: Signs, length: int, layout: Layout) -> npt.NDArray[np.int64]:
    outputs, inputs = grid.shape
    if layout == "KN":
        return (np.arange(inputs) * outputs + row) % length
    return (np.arange(inputs) + row * inputs) % length


def _solve_flips(
    grid: Signs, empty_rows: Signs, length: int, layout: Layout
) -> npt.NDArray[np.bool_] | None:
    """Which rows must be flipped so that all signs repeat with one period; None if none can.

    Rows that meet in the tile must agree or disagree in all their common places. Each such pair
    joins two rows with a parity; the flips follow from the joined groups.
    """
    outputs, inputs = grid.shape
    if layout == "NK" and length % inputs == 0 and not empty_rows.any():
        first = grid[np.arange(outputs) % (length // inputs), 0]
        return grid[:, 0] ^ first
    owner = np.full(length, -1, dtype=np.int64)
    value = np.zeros(length, dtype=np.bool_)
    parent, parity = list(range(outputs)), [False] * outputs

    def root(row: int) -> tuple[int, bool]:
        flip = False
        while parent[row] != row:
            flip ^= parity[row]
            row = parent[row]
        return row, flip

    for row in np.flatnonzero(~empty_rows).tolist():
        phases = _phases(row, grid, length, layout)
        signs = grid[row]
        unique, where = np.unique(phases, return_index=True)
        if unique.size < phases.size:
            merged = np.zeros(length, dtype=np.bool_)
            merged[unique] = signs[where]
            if not np.array_equal(merged[phases], signs):
                return None
            phases, signs = unique, signs[where]
        owners = owner[phases]
        for other in np.unique(owners[owners >= 0]).tolist():
            met = owners == other
            differs = signs[met] ^ value[phases[met]]
            if differs.any() != differs.all():
                return None
            (here, flip), (there, other_flip) = root(row), root(other)
            relation = bool(differs[0]) ^ flip ^ other_flip
            if here != there:
                parent[here], parity[here] = there, relation
            elif relation:
                return None
        fresh = owners < 0
        owner[phases[fresh]] = row
        value[phases[fresh]] = signs[fresh]
    return np.fromiter((root(row)[1] for row in range(outputs)), np.bool_, outputs)


def _collect_tile(unflipped: Signs, empty_rows: Signs, length: int, layout: Layout) -> Signs:
    tile = np.zeros(length, dtype=np.bool_)
    for row in np.flatnonzero(~empty_rows)[::-1].tolist():
        tile[_phases(row, unflipped, length, layout)] = unflipped[row]
    return tile


def _weight(
    positive: Signs,
    length: int,
    offset: int,
    scale: Floats,
    scale_length: int,
    scale_offset: int,
    shape: tuple[int, ...],
    layout: Layout,
) -> TiledBinaryWeight:
    bits: Bits = pack_bits(np.roll(positive[:length], offset))
    return TiledBinaryWeight(
        bits, shape, length, scale, scale_length, offset, scale_offset, layout
    )
