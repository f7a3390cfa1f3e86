"""Scales that change inside rows, as sums of a few rows whose scale does not.

A scale that steps from a to c at column b is (a + c) / 2 everywhere, and (a - c) / 2 with a sign
that flips at b. So such a row is a combination of rows of signs, one more than it has steps: they
are computed like any others, and equal ones once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tbn_compile.passes.relax.distinct_rows import DistinctRows
from tbn_compile.passes.relax.tiled_layer import TiledLayer, constant_of
from tbn_compile.tile import Bits, ReusePlan, Signs

_MOST_TERMS = 4
_MOST_WEIGHTS, _MOST_OUTPUTS = 2**24, 2**16
_MOST_CANCELLED = 2.0
"""How far the coefficients of a row together may exceed its least scale: they cost precision."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Outputs as combinations of distinct rows.

    Attributes:
        rows: int32[outputs, terms], which distinct rows.
        factors: float32[outputs, terms], by what; zeros where an output has fewer terms.
    """

    rows: npt.NDArray[np.int32]
    factors: npt.NDArray[np.float32]


def mixed_rows(layer: TiledLayer, tile: Bits) -> tuple[DistinctRows, Mixture] | None:
    """The rows of signs that a layer needs, and how its outputs are mixed from them.

    Args:
        layer: a call with a constant scale.
        tile: its packed tile.

    Returns:
        None if a row has too many steps, or steps so high that rounding would show; if the
        convolution has groups; or if the weight is too large to be looked at whole.
    """
    shape, scale = (layer.weight.outputs, layer.weight.inputs), constant_of(layer.scale)
    too_large = layer.weight.size > _MOST_WEIGHTS or shape[0] > _MOST_OUTPUTS
    if scale is None or too_large or layer.plan.groups > 1:
        return None
    weight = replace(layer.weight, bits=tile, scale=scale)
    signs, scales = weight.signs(), weight.scales().astype(np.float32)
    if weight.layout == "KN":
        signs, scales = (each.reshape(shape[::-1]).T for each in (signs, scales))
    signs, scales = signs.reshape(shape), scales.reshape(shape)
    steps = scales[:, 1:] != scales[:, :-1]
    if 1 + steps.sum(axis=1).max(initial=0) > _MOST_TERMS:
        return None
    found: dict[bytes, int] = {}
    terms = [_terms(*row, found) for row in zip(signs, scales, steps, strict=True)]
    factors = np.zeros((shape[0], max(map(len, terms))), np.float32)
    rows = np.zeros(factors.shape, np.int32)
    for output, row in enumerate(terms):
        rows[output, : len(row)], factors[output, : len(row)] = zip(*row, strict=True)
    if (np.abs(factors).sum(axis=1) > _MOST_CANCELLED * np.abs(scales).min(axis=1)).any():
        return None
    packed = np.frombuffer(b"".join(found), np.uint8).reshape(len(found), -1)
    plan = ReusePlan(*shape, len(found), shape[1], segments=1, groups=1)
    distinct = np.unpackbits(packed, axis=1, count=shape[1]).view(np.bool_)
    return DistinctRows(plan, distinct, None, None), Mixture(rows, factors)


def _terms(
    signs: Signs, scales: npt.NDArray[Any], steps: Signs, found: dict[bytes, int]
) -> list[tuple[int, float]]:
    """(distinct row, factor) of an output; new rows of signs join `found`."""
    ends = np.flatnonzero(steps)
    halves = (scales[ends].astype(np.float64) - scales[ends + 1]) / 2
    flipped = [np.where(np.arange(len(signs)) > end, ~signs, signs) for end in ends]
    factors = [float(scales[0]) - halves.sum(), *halves]
    return [
        (found.setdefault(np.packbits(row).tobytes(), len(found)), factor)
        for row, factor in zip([signs, *flipped], factors, strict=True)
    ]
