"""Find the tile in a dense weight, or say in words why there is none.

Detection is exact: a returned tile expands to the weight's own values. The work is linear in the
weight's size: a period of up to half the signs is found directly, others among candidates whose
comparison has a budget.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from math import gcd, isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from tbn_compile.tile import Bits, Floats, Layout, Signs, TiledBinaryWeight, pack_bits

Symbols = npt.NDArray[np.uint8]
_EQUAL, _OPPOSITE, _WILD = np.uint8(1), np.uint8(2), np.uint8(3)
"""What two neighbouring signs are to each other. Two symbols agree if they have a bit in common."""
_ANCHOR = 64
_SAMPLE = 65_536
_BLOCK = 4096
_WORK = 64
"""How often a weight's signs may be compared in the search for one kind of period."""
_LEAST_WORK = 2**26
_TRIES = 256
SMALLEST_GAIN = 4
"""A tile pays if the weight needs as many times its bytes; so does a scale for its weights."""


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
    problem = _reject(weight, layouts)
    if problem:
        return NotTiled(problem)
    found = [tile for layout in layouts for tile in _tiles(weight, layout)]
    if not found:
        return NotTiled(_explain(weight))
    best = min(found, key=lambda tile: (tile.stored_bytes, tile.tile_length))
    positive = weight > 0
    if positive.all() or not positive.any():
        return NotTiled("all weights have the same sign: a constant, not a tile")
    if best.stored_bytes * SMALLEST_GAIN > weight.nbytes:
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
    return next(_exact_periods(signs.tobytes(), signs.size), signs.size)


def _reject(weight: Floats, layouts: tuple[Layout, ...]) -> str | None:
    if weight.size < 2:
        return "a single weight" if weight.size else "an empty weight"
    samples = [_sample(weight, layout) for layout in layouts]
    if all(np.count_nonzero(s[1:] != s[:-1]) * 2 > s.size > 16 for s in samples):
        first = samples[0]
        return f"magnitudes differ: {np.unique(first).size} values in the first {first.size}"
    magnitudes = _magnitudes(weight)
    infinity = _magnitudes(np.asarray([np.inf], dtype=weight.dtype))[0]
    if (magnitudes >= infinity).any():
        return "weights are not finite"
    if not magnitudes.any():
        return "all weights are zero"
    return None


def _explain(weight: Floats) -> str:
    """Why a weight that was searched has no tile."""
    nonzero = _magnitudes(weight[weight != 0])
    zeros = weight.size - nonzero.size
    if zeros and nonzero.min() == nonzero.max():
        return f"{zeros} of {weight.size} weights are zero"
    return "weights have no common magnitude per layer, row or tile"


def _sample(weight: Floats, layout: Layout) -> npt.NDArray[Any]:
    """The first magnitudes in stored order."""
    rows = weight.reshape(weight.shape[0], -1) if layout == "NK" else weight.T
    return _magnitudes(rows[: -(-_SAMPLE // rows.shape[1])])[:_SAMPLE]


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
    if changes.size * SMALLEST_GAIN > flat.size:
        return
    length = smallest_period(positive)
    if changes.size == 0:
        yield _weight(positive, length, 0, np.abs(flat[:1]), flat.size, 0, shape, layout)
        return
    first = int(changes[0])
    run = int(np.gcd.reduce(changes - first))
    if run == 0:
        run = -(-max(first, flat.size - first) // length) * length
    start = -first % run
    scale = np.abs(flat[_run_starts(flat.size, run, start)])
    yield _weight(positive, length, start % length, scale, run, start, shape, layout)


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
    if inputs <= SMALLEST_GAIN:
        return
    run = _scale_run(flat, changes, layout, outputs)
    if run is None or (layout == "NK" and run <= SMALLEST_GAIN):
        return
    grid = positive.reshape(outputs, inputs) if layout == "NK" else positive.reshape(inputs, -1).T
    empty = zeros.reshape(outputs, inputs) if layout == "NK" else zeros.reshape(inputs, -1).T
    if (empty.any(axis=1) != empty.all(axis=1)).any():
        return
    empty_rows: Signs = np.asarray(empty.all(axis=1))
    periods = islice(_relative_periods(grid, empty_rows, layout), _TRIES)
    for length in chain(periods, (grid.size,)):
        flips = _solve_flips(grid, empty_rows, length, layout)
        if flips is None:
            continue
        signs, filled = grid ^ flips[:, None], ~empty
        if layout == "KN":
            signs, filled = signs.T, filled.T
        tile = _collect_tile(signs.reshape(-1), filled.reshape(-1), length)
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
    """Candidate tile lengths of signs whose rows may be flipped, ascending.

    How neighbouring signs of one row relate does not change with the row's flip, so the period of
    these relations is the tile's.
    """
    inputs = grid.shape[1]
    if layout == "KN":
        relations = np.where(grid[:, 1:] ^ grid[:, :-1], _OPPOSITE, _EQUAL)
        relations[empty_rows] = _WILD
        symbols, first = relations.T.reshape(-1), 0
    else:
        relations = np.full(grid.shape, _WILD)
        relations[:, :-1] = np.where(grid[:, 1:] ^ grid[:, :-1], _OPPOSITE, _EQUAL)
        relations[empty_rows] = _WILD
        first = int(np.argmin(empty_rows)) * inputs
        symbols = relations.reshape(-1)
    if empty_rows.any():
        return _masked_periods(symbols, first, inputs, grid.size)
    exact = _exact_periods(symbols.tobytes(), grid.size)
    if layout == "KN":
        return exact
    return heapq.merge(exact, _masked_periods(symbols, first, inputs, grid.size))


def _exact_periods(text: bytes, size: int) -> Iterator[int]:
    """Periods of a text, ascending.

    If a text has a period of up to half its length, the shortest is where its first half stands
    again, and the others are multiples of it (Fine and Wilf, 1965). Longer ones count if they
    divide the weight's `size` or if `_ANCHOR` symbols confirm them.
    """
    half = -(-len(text) // 2)
    shortest = text.find(text[:half], 1)
    if shortest > 0 and text.startswith(text[shortest:]):
        yield from range(shortest, len(text) - half + 1, shortest)
    longer = len(text) - half + 1
    dividing = (divisor for divisor in _divisors(size) if longer <= divisor < len(text))
    work = max(_LEAST_WORK, _WORK * size)
    for period in heapq.merge(dividing, _occurrences(text, 0, _ANCHOR, longer)):
        work -= _BLOCK
        if text.startswith(text[period : period + _BLOCK]):
            work -= len(text) - period
            if text.startswith(text[period:]):
                yield period
        if work < 0:
            return


def _masked_periods(symbols: Symbols, first: int, inputs: int, size: int) -> Iterator[int]:
    """Periods of a sequence with wildcards, ascending, as far as the work's budget reaches.

    Args:
        symbols: uint8[L], relations of neighbouring signs.
        first: where the first row with signs begins; its signs are searched for again.
        inputs: the length of a row.
        size: the number of weights, of which an exact tile is a divisor.
    """
    length = min(_ANCHOR, max(1, (inputs - 1) // 2))
    candidates = heapq.merge(_divisors(size), _agreeing_places(symbols, first, length))
    last, work = 0, max(_LEAST_WORK, _WORK * symbols.size)
    for period in candidates:
        if period == last or period >= symbols.size:
            continue
        last = period
        agreeing = _agreement(symbols, period)
        work -= _BLOCK + agreeing
        if agreeing == symbols.size - period and _worthwhile(period, size):
            yield period
        if work < 0:
            return


def _agreeing_places(symbols: Symbols, first: int, length: int) -> Iterator[int]:
    """Distances, ascending, at which nothing contradicts the `length` symbols at `first`."""
    anchor = symbols[first : first + length]
    for start in range(first + 1, symbols.size, _SAMPLE):
        places = np.arange(start, min(start + _SAMPLE, symbols.size - length + 1))
        for index, symbol in enumerate(anchor):
            places = places[(symbols[places + index] & symbol) != 0]
        yield from (places - first).tolist()


def _worthwhile(period: int, size: int) -> bool:
    return size % period == 0 or 2 * period <= size or size - period >= _ANCHOR


def _agreement(symbols: Symbols, period: int) -> int:
    """How many symbols agree with those one period earlier before a block has one that does not."""
    later, earlier = symbols[period:], symbols[:-period]
    start, block = 0, _BLOCK
    while start < later.size:
        stop = start + block
        if not (later[start:stop] & earlier[start:stop]).all():
            return start
        start, block = stop, min(2 * block, 256 * _BLOCK)
    return later.size


def _occurrences(text: bytes, start: int, length: int, search_from: int) -> Iterator[int]:
    """Distances, ascending, at which the `length` symbols at `start` stand again."""
    anchor = text[start : start + length]
    if int(_WILD) in anchor or len(anchor) < length:
        return
    found = text.find(anchor, search_from)
    while found >= 0:
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
    if length >= grid.size:
        return np.zeros(outputs, dtype=np.bool_)
    if layout == "NK" and length % inputs == 0:
        models = _first_of_kind(empty_rows, length // inputs)
        flips = (grid[:, 0] ^ grid[models, 0]) & ~empty_rows
        differs = grid ^ grid[models] ^ flips[:, None]
        return None if differs[~empty_rows].any() else flips
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


def _first_of_kind(empty_rows: Signs, kinds: int) -> npt.NDArray[np.int64]:
    """For each row, the first row that is not empty among those a multiple of `kinds` apart."""
    rows = np.arange(empty_rows.size)
    first = np.arange(kinds)
    filled = np.flatnonzero(~empty_rows)[::-1]
    first[filled % kinds] = filled
    return first[rows % kinds] % empty_rows.size


def _collect_tile(signs: Signs, filled: Signs, length: int) -> Signs:
    """Each sign of the tile from the first place where a weight that is not zero shows it."""
    if filled.all():
        return signs[:length]
    repeats = -(-signs.size // length)
    seen = np.zeros((2, repeats * length), dtype=np.bool_)
    seen[:, : signs.size] = signs, filled
    signs, filled = seen.reshape(2, repeats, length)
    return signs[np.argmax(filled, axis=0), np.arange(length)]


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
    return TiledBinaryWeight(bits, shape, length, scale, scale_length, offset, scale_offset, layout)
