"""The tile data type: every rule of the mathematics, in numpy alone.

A layer's weight, flattened in its stored order, has L elements:

    W[i] = scale[((i + scale_offset) // scale_length) mod len(scale)] · t[(i + offset) mod q]

with t in {-1, +1}^q, q the tile length and p = L / q the number of tiles (Gorbett, Shirazi and Ray,
CIKM 2024, section 3; the paper has one scale per layer or per tile and no offset). The general form
also holds per-row scales with row sign flips (a BatchNorm folded into the layer), windows on a
longer tile (a fused projection that was split) and partial last tiles.

`sign(0)` is -1. Bits are packed least significant bit first: 1 is +1, 0 is -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tbn_compile.errors import TileError

Layout: TypeAlias = Literal["NK", "KN"]
PlanKind: TypeAlias = Literal["rows", "columns", "blocks", "expand"]
Bits: TypeAlias = npt.NDArray[np.uint8]
Signs: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[Any]

MAX_ELEMENTS = 2**33
"""The most weights that one layer may have; larger claims are refused before anything is sized."""
SCALE_DTYPES = ("float32", "float16", "bfloat16")
"""The element types of weights, as numpy names them."""
_ROUNDING = 2**-8
"""The relative error of the coarsest type, bfloat16; more is an overflow or an underflow."""


def pack_bits(positive: npt.ArrayLike) -> Bits:
    """Pack signs into bytes.

    Args:
        positive: bool[q], True for +1 and False for -1.

    Returns:
        uint8[ceil(q / 8)], least significant bit first, padded with zero bits.
    """
    return np.packbits(np.asarray(positive, dtype=np.bool_), bitorder="little")


def unpack_bits(bits: Bits, tile_length: int) -> Signs:
    """Undo `pack_bits`: uint8[ceil(q / 8)] to bool[q], True for +1."""
    return np.unpackbits(bits, count=tile_length, bitorder="little").view(np.bool_)


@dataclass(frozen=True, eq=False)
class TiledBinaryWeight:
    """One layer's weight as a repeated binary tile and its scales.

    Attributes:
        bits: uint8[ceil(tile_length / 8)], the packed tile.
        shape: the weight's shape in stored order: (N, K) or (N, K1, K2, ...) when `layout` is "NK",
            (K, N) when it is "KN". N counts outputs, K inputs.
        tile_length: q, in elements. It may exceed the weight: then the weight is a window.
        scale: float[C], C >= 1, float32, float16 or bfloat16. An entry may be negative or zero.
        scale_length: how many consecutive weights share one scale: q per tile, K per row.
        offset: where in the tile the first weight stands, 0 <= offset < tile_length.
        scale_offset: likewise in the cycle of scales, 0 <= scale_offset < C * scale_length.
        layout: "NK" if the tile runs along rows of the [N, K] weight, "KN" if along its columns.

    Raises:
        TileError: if a field is out of range or the lengths do not agree.
    """

    bits: Bits
    shape: tuple[int, ...]
    tile_length: int
    scale: Floats
    scale_length: int
    offset: int = 0
    scale_offset: int = 0
    layout: Layout = "NK"

    def __post_init__(self) -> None:
        if self.layout not in ("NK", "KN"):
            raise TileError(f"layout is {self.layout!r}; use 'NK' or 'KN'")
        if len(self.shape) < 2 or (self.layout == "KN" and len(self.shape) != 2):
            raise TileError(f"weight shape {self.shape} does not fit layout {self.layout}")
        if any(extent < 1 for extent in self.shape) or prod(self.shape) > MAX_ELEMENTS:
            raise TileError(f"weight shape {self.shape} must hold 1 to {MAX_ELEMENTS} weights")
        if not 1 <= self.tile_length <= MAX_ELEMENTS:
            raise TileError(f"tile length {self.tile_length} must be 1 to {MAX_ELEMENTS}")
        if self.bits.dtype != np.uint8 or self.bits.shape != (-(-self.tile_length // 8),):
            raise TileError(
                f"tile holds {self.bits.shape} {self.bits.dtype}; {self.tile_length} bits need "
                f"uint8[{-(-self.tile_length // 8)}]"
            )
        if self.scale.ndim != 1 or self.scale.size < 1:
            raise TileError(f"scale has shape {self.scale.shape}; it needs one axis and an entry")
        if self.scale.dtype.name not in SCALE_DTYPES:
            raise TileError(f"scale is {self.scale.dtype}; use {', '.join(SCALE_DTYPES)}")
        if not 1 <= self.scale_length <= MAX_ELEMENTS:
            raise TileError(f"scale length {self.scale_length} must be 1 to {MAX_ELEMENTS}")
        if not 0 <= self.offset < self.tile_length:
            raise TileError(f"offset {self.offset} must be 0 to {self.tile_length - 1}")
        cycle = self.scale.size * self.scale_length
        if not 0 <= self.scale_offset < cycle:
            raise TileError(f"scale offset {self.scale_offset} must be 0 to {cycle - 1}")

    def __eq__(self, other: object) -> bool:
        """Equal if they give the same weight of the same type in the same layout."""
        if not isinstance(other, TiledBinaryWeight):
            return NotImplemented
        return (
            self.shape == other.shape
            and self.layout == other.layout
            and self.scale.dtype == other.scale.dtype
            and np.array_equal(self.expand(), other.expand())
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def size(self) -> int:
        """L, the number of weights."""
        return prod(self.shape)

    @property
    def outputs(self) -> int:
        """N, the number of output features or channels."""
        return self.shape[0] if self.layout == "NK" else self.shape[1]

    @property
    def inputs(self) -> int:
        """K, the number of weights behind one output."""
        return self.size // self.outputs

    @property
    def repeats(self) -> float:
        """p, how often the tile fits into the weight; 1.0 for a plain binary layer or a window."""
        return max(1.0, self.size / self.tile_length)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the packed tile and the scales."""
        return self.bits.nbytes + self.scale.nbytes

    @property
    def scaling(self) -> Literal["layer", "row", "tile", "block"]:
        """What shares one scale: the layer, a row of [N, K], a tile, or a shorter run."""
        if self.scale.size == 1:
            return "layer"
        if self.scale_length == self.tile_length and self.scale_offset == self.offset:
            return "tile"
        return "row" if self._scale_follows_rows() else "block"

    def signs(self) -> Signs:
        """bool[L] in stored order, True for +1."""
        tile = unpack_bits(self.bits, self.tile_length)
        return np.resize(tile, self.offset + self.size)[self.offset :]

    def scales(self) -> Floats:
        """float[L] in stored order, in the dtype of `scale`."""
        first, within = divmod(self.scale_offset, self.scale_length)
        scale = np.roll(self.scale, -first)
        ahead = min(self.scale_length - within, self.size)
        rest, run = self.size - ahead, min(self.scale_length, self.size)
        runs = np.repeat(np.roll(scale, -1)[: -(-rest // run)], run)
        return np.concatenate([np.repeat(scale[:1], ahead), np.resize(runs, rest)])

    def expand(self) -> Floats:
        """The dense weight, of shape `shape` (stored order) and the dtype of `scale`."""
        scales = self.scales()
        return np.where(self.signs(), scales, -scales).reshape(self.shape)

    def matrix(self) -> Floats:
        """The dense weight as [N, K], whatever the layout."""
        if self.layout == "KN":
            return self.expand().T
        return self.expand().reshape(self.outputs, self.inputs)

    def scaled(self, factor: Floats) -> TiledBinaryWeight:
        """Multiply by one factor for the layer, or by one per output.

        Args:
            factor: float[] or float[N].

        Returns:
            The same tile with new scales: per row if `factor` is, or shorter runs where a tile's
            scale changes inside a row.

        Raises:
            TileError: if a product leaves the range of the scale's type; or if the layout is "KN",
                `factor` is per output and the present scale is neither per layer nor per output,
                because the two cannot be joined.
        """
        if factor.ndim == 0:
            return self._with_scale(self.scale * factor, self.scale_length, self.scale_offset)
        if factor.shape != (self.outputs,):
            raise TileError(f"factor of shape {factor.shape} does not fit {self.outputs} outputs")
        if self.scale.size == 1 or self._scale_follows_rows():
            rows = np.broadcast_to(self._row_scales(), factor.shape) * factor
            return self._with_scale(rows, self.inputs if self.layout == "NK" else 1, 0)
        if self.layout == "KN":
            raise TileError("a scale that changes along K cannot take one factor per output")
        run = gcd(self.inputs, self.scale_length, self.scale_offset)
        runs = self.scales()[::run] * np.repeat(factor, self.inputs // run)
        return self._with_scale(runs, run, 0)

    def plan_reuse(self, groups: int = 1, foldable: bool = True) -> ReusePlan:
        """Choose the cheapest way to multiply by this weight; see `ReusePlan`.

        Args:
            groups: groups of a convolution: each has its own inputs and N / groups outputs, and
                only rows of one group can share work.
            foldable: whether the kernel can add activations up before it multiplies. Convolutions
                without an im2col buffer cannot.
        """
        rows, columns = self.outputs // groups, self.inputs
        expand = ReusePlan(rows, columns, rows, columns, 1, groups)
        row_period, column_period, segments = self._periods()
        if segments == 0:
            return expand
        shared_rows = min(rows, row_period)
        shared_columns = min(columns, column_period) if foldable else columns
        plans = [
            ReusePlan(rows, columns, distinct_rows, distinct_columns, segments, groups)
            for distinct_rows in (rows, shared_rows)
            for distinct_columns in (columns, shared_columns)
        ]
        return min([expand, *plans], key=lambda plan: plan.multiply_adds)

    def _periods(self) -> tuple[int, int, int]:
        """After how many rows and columns the signs repeat, and the segments of a row's scale.

        Zero segments: the scale follows neither rows nor columns, so nothing can be shared.
        """
        q = self.tile_length
        if self.layout == "KN":
            along_inputs = (self.scale_length % self.outputs, self.scale_offset % self.outputs)
            separable = self._scale_follows_rows() or along_inputs == (0, 0)
            if not separable and self.scale.size > 1:
                return q, q, 0
            return q, q // gcd(q, self.outputs), 1
        row_period = q // gcd(q, self.inputs)
        if self.scale.size == 1 or self._scale_follows_rows():
            return row_period, q, 1
        # Rows share partial sums only between the places where any of their copies changes scale.
        run = gcd(self.scale_length, row_period * self.inputs)
        aligned = self.inputs % run == 0 and self.scale_offset % run == 0
        segments = self.inputs // run if aligned else (self.inputs + run - 2) // run + 1
        return row_period, self.inputs, segments

    def _scale_follows_rows(self) -> bool:
        if self.layout == "KN":
            return (self.scale_length, self.scale.size, self.scale_offset) == (1, self.outputs, 0)
        return self.scale_length % self.inputs == 0 and self.scale_offset % self.inputs == 0

    def _row_scales(self) -> Floats:
        if self.scale.size == 1:
            return self.scale
        if self.layout == "KN":
            return self.scale
        return self.scales()[:: self.inputs]

    def _with_scale(self, product: Floats, length: int, offset: int) -> TiledBinaryWeight:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            scale = np.ascontiguousarray(product, dtype=self.scale.dtype)
            error = np.abs(scale.astype(np.float64) - product.astype(np.float64))
            fits = error <= _ROUNDING * np.abs(product.astype(np.float64))
        if not fits.all():
            raise TileError(f"a scale of {product[~fits][0]:g} does not fit {self.scale.dtype}")
        return TiledBinaryWeight(
            bits=self.bits,
            shape=self.shape,
            tile_length=self.tile_length,
            scale=scale,
            scale_length=length,
            offset=self.offset,
            scale_offset=offset,
            layout=self.layout,
        )


@dataclass(frozen=True)
class ReusePlan:
    """Which rows and columns of the [N, K] weight are computed once.

    Output n equals output n mod `distinct_rows` up to its scale, so it is a scaled copy; inputs k
    and k + `distinct_columns` meet the same signs, so they are added up before the product.

    Attributes:
        rows, columns: outputs and inputs of one group.
        distinct_rows, distinct_columns: the extent of the product that is computed.
        segments: scales inside one row; each needs a partial sum of its own.
        groups: groups of a convolution.
    """

    rows: int
    columns: int
    distinct_rows: int
    distinct_columns: int
    segments: int
    groups: int

    @property
    def kind(self) -> PlanKind:
        """What repeats: "rows", "columns", both ("blocks"), or nothing that pays ("expand")."""
        shared = (self.distinct_rows < self.rows, self.distinct_columns < self.columns)
        kinds: dict[tuple[bool, bool], PlanKind] = {
            (True, False): "rows",
            (False, True): "columns",
            (True, True): "blocks",
            (False, False): "expand",
        }
        return kinds[shared]

    @property
    def multiply_adds(self) -> int:
        """The cost model: multiply-adds for one row of input or one output position.

        The product over distinct rows and columns, K additions to fold the inputs, and a
        multiplication per copied output and segment.
        """
        fold = self.columns if self.distinct_columns < self.columns else 0
        copies = self.rows * self.segments if self.distinct_rows < self.rows else 0
        return self.groups * (fold + self.distinct_rows * self.distinct_columns + copies)

    @property
    def dense_multiply_adds(self) -> int:
        """What the dense weight would need for the same result."""
        return self.groups * self.rows * self.columns
