"""The signs and scales of a layer as kernels read them: of distinct rows and columns only."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tbn_compile.passes.relax.tiled_layer import TiledLayer
from tbn_compile.tile import Bits, ReusePlan, Signs, TiledBinaryWeight, unpack_bits

Words: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class RunScale:
    """Scales of consecutive outputs or inputs: number i has `values[i // run]`.

    Attributes:
        values: float32[...], or what stands for them in other arithmetic.
        run: how many share one value.
    """

    values: npt.NDArray[Any]
    run: int


@dataclass(frozen=True, eq=False)
class DistinctRows:
    """What the reuse plan leaves of a weight.

    Row d of group g has the signs of pattern `first_pattern(g) + d`.

    Attributes:
        plan: the reuse plan.
        signs: bool[patterns, distinct columns], True for +1.
        row_scale: the scale of each output.
        column_scale: the scale of each input, for a weight stored as [K, N] that has one.
    """

    plan: ReusePlan
    signs: Signs
    row_scale: RunScale | None
    column_scale: RunScale | None

    def first_pattern(self, group: Any) -> Any:
        """The pattern of the first row of a group."""
        cycle = len(self.signs) // self.plan.rows
        return (group % cycle) * self.plan.rows if cycle > 1 else 0


def nibbles(signs: Signs, size: int) -> npt.NDArray[np.uint8]:
    """Signs of consecutive inputs in groups, each a small number.

    Args:
        signs: bool[..., columns].
        size: inputs in a group, at most 8.

    Returns:
        uint8[..., ceil(columns / size)], the sign of a group's first input lowest.
    """
    *leading, columns = signs.shape
    padded = np.pad(signs, [(0, 0)] * len(leading) + [(0, -columns % size)])
    bits = padded.reshape(*leading, -1, size) << np.arange(size)
    return bits.sum(axis=-1, dtype=np.uint8)


def distinct_rows(layer: TiledLayer, tile: Bits) -> DistinctRows | None:
    """The distinct rows of a layer; None if its scale follows neither outputs nor inputs.

    Args:
        layer: the call.
        tile: its packed tile.
    """
    weight, plan = layer.weight, layer.plan
    row_scale, column_scale = _row_scale(weight), _column_scale(weight)
    if plan.segments > 1 or (row_scale is None and column_scale is None):
        return None
    rows, columns = np.ogrid[: _patterns(weight, plan), : plan.distinct_columns]
    steps = (1, weight.outputs) if weight.layout == "KN" else (weight.inputs, 1)
    positions = rows * steps[0] + columns * steps[1] + weight.offset
    signs = unpack_bits(tile, weight.tile_length)[positions % weight.tile_length]
    return DistinctRows(plan, signs, row_scale, column_scale if row_scale is None else None)


def _patterns(weight: TiledBinaryWeight, plan: ReusePlan) -> int:
    """How many rows of signs are stored: groups share them where they fall on the same ones."""
    period = weight.tile_length // gcd(weight.tile_length, weight.inputs)
    if plan.groups == 1 or plan.rows % period == 0:
        return plan.distinct_rows
    aligned = period % plan.rows == 0 and period < weight.outputs
    return period if aligned else weight.outputs


def _row_scale(weight: TiledBinaryWeight) -> RunScale | None:
    if weight.scale.size == 1:
        return RunScale(weight.scale.astype(np.float32), weight.outputs)
    step = 1 if weight.layout == "KN" else weight.inputs
    if weight.layout == "KN":
        follows = (weight.scale_length, weight.scale.size, weight.scale_offset) == (
            1,
            weight.outputs,
            0,
        )
    else:
        follows = weight.scale_length % step == 0 and weight.scale_offset % step == 0
    return _run_scale(weight, weight.outputs, step) if follows else None


def _column_scale(weight: TiledBinaryWeight) -> RunScale | None:
    step = weight.outputs
    if weight.layout == "NK" or weight.scale_length % step or weight.scale_offset % step:
        return None
    return _run_scale(weight, weight.inputs, step)


def _run_scale(weight: TiledBinaryWeight, count: int, step: int) -> RunScale:
    """The scales of `count` numbers that lie `step` elements apart and divide every run."""
    run = weight.scale_length // step
    if weight.scale_offset % weight.scale_length:
        run = 1
    positions = np.arange(0, count, run) * step + weight.scale_offset
    index = positions // weight.scale_length % weight.scale.size
    return RunScale(weight.scale[index].astype(np.float32), run)
