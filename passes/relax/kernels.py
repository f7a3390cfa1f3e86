"""Portable tensor expressions for the tiled operators, by the reuse plan of each call.

Stages, each a named block that a schedule can find:

* "padded": the activation of a convolution with zeros around it, only where there is padding;
* "folded": float32, inputs that meet the same signs added up;
* "product": float32, the distinct rows only, bits unpacked where they are used;
* "epilogue": the scaled copies of those rows with bias, residual and activation, in T;
* "pooled": the greatest elements of windows, only where a layer pools.

Of an integer activation, "folded" and "product" are exact int32 sums of integer - zero point. The
epilogue is float32 there too; its result is rounded half to even where integers are asked for.

The dense weight is never stored, nor is an im2col matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd, prod, sqrt
from typing import Any, TypeAlias

from tvm import te, tirx

from tbn_compile.passes.relax.tiled_layer import Quantization, TiledLayer, Window

_BYTE_ONE = tirx.const(1, "uint8")
Index: TypeAlias = Any
"""A position: an integer or a symbolic int64."""


@dataclass(frozen=True)
class Signs:
    """The weight's signs and scales by row n and column k of [N, K].

    Attributes:
        layer: the call.
        tile: uint8[ceil(tile_length / 8)].
        scale: T[C].
    """

    layer: TiledLayer
    tile: Any
    scale: Any

    def apply(self, row: Index, column: Index, value: Any) -> Any:
        """`value` with the sign of the weight."""
        weight = self.layer.weight
        position = tirx.floormod(self._flat(row, column) + weight.offset, weight.tile_length)
        # Shifts, because TVM 0.27 simplifies a division of this remainder to another byte.
        bit = (self.tile[position >> 3] >> (position & 7).astype("uint8")) & _BYTE_ONE
        return tirx.Select(bit == _BYTE_ONE, value, -value)

    def scale_at(self, row: Index, column: Index) -> Any:
        """What one unit of a sum is worth, float32: the weight's scale, times that of integers."""
        quantization = self.layer.input_quantization
        scale = self.scale[self._scale_index(row, column)].astype("float32")
        return scale * _float(quantization.scale) if quantization else scale

    def _scale_index(self, row: Index, column: Index) -> Index:
        weight = self.layer.weight
        count = int(self.scale.shape[0])
        if count == 1:
            return 0
        run = _shifted_division(self._flat(row, column), weight.scale_offset, weight.scale_length)
        return tirx.floormod(run, count)

    def _flat(self, row: Index, column: Index) -> Index:
        weight = self.layer.weight
        if weight.layout == "KN":
            return column * weight.outputs + row
        return row * weight.inputs + column


def compute(layer: TiledLayer, x: Any, tile: Any, scale: Any, *operands: Any) -> Any:
    """Y as a tensor expression.

    Args:
        layer: the call.
        x: its activation, a tensor of `te`.
        tile: its tile, likewise.
        scale: its scale, likewise.
        *operands: the operands of its epilogue, likewise.

    Returns:
        T[..., N] or T[batch, N, o1..on].
    """
    signs = Signs(layer, tile, scale)
    if layer.window is None:
        return _gemm(layer, signs, x, operands)
    return _conv(layer, layer.window, signs, x, operands)


def apply_epilogue(
    layer: TiledLayer, value: Any, channel: Index, place: Sequence[Index], operands: Sequence[Any]
) -> Any:
    """The steps of the epilogue on one scaled float32 sum.

    Args:
        layer: the call.
        value: float32.
        channel: which output.
        place: its position in the result.
        operands: the tensors of the steps that have one.
    """
    remaining = iter(operands)
    for step in layer.epilogue:
        if step.kind == "bias":
            value = value + next(remaining)[channel].astype("float32")
        elif step.kind == "residual":
            value = value + next(remaining)[tuple(place)].astype("float32")
        elif step.bounds is not None:
            value = _clip(value, *step.bounds)
        else:
            value = _ACTIVATIONS[step.kind](value)
    output = layer.output_quantization
    return value.astype(layer.element_type) if output is None else _quantize(value, output)


def _gemm(layer: TiledLayer, signs: Signs, x: Any, operands: Sequence[Any]) -> Any:
    leading, rank = list(x.shape[:-1]), len(x.shape)
    read = _folded(layer, signs, x)

    def load(place: Sequence[Index], _row: Index, taps: Sequence[Index]) -> Any:
        return read(*place, *taps)

    sums = _Product(layer, signs, load, (layer.plan.distinct_columns,))
    product = te.compute(
        [*leading, *sums.shape],
        lambda *i: sums.sum(i[: rank - 1], i[rank - 1], i[rank:]),
        name="product",
    )

    def finish(*place: Index) -> Any:
        row = place[-1]
        value = sums.scaled(row, lambda *tail: product[(*place[:-1], *tail)])
        return apply_epilogue(layer, value, row, place, operands)

    return te.compute([*leading, _extent(layer.weight.outputs)], finish, name="epilogue")


def _conv(layer: TiledLayer, window: Window, signs: Signs, x: Any, operands: Sequence[Any]) -> Any:
    _, channels, *kernel = layer.weight.shape
    inputs, results = _padded(layer, window, x)

    def load(place: Sequence[Index], row: Index, taps: Sequence[Index]) -> Any:
        batch, *outputs = place
        group = tirx.floordiv(row, layer.plan.rows) if layer.plan.groups > 1 else 0
        where = [
            output * stride + tap * dilation
            for output, stride, tap, dilation in zip(
                outputs, window.strides, taps[1:], window.dilations, strict=True
            )
        ]
        return read_number(layer, inputs[(batch, group * channels + taps[0], *where)])

    sums = _Product(layer, signs, load, (channels, *kernel))
    last = 2 + len(kernel)
    product = te.compute(
        [x.shape[0], sums.shape[0], *results, *sums.shape[1:]],
        lambda *i: sums.sum((i[0], *i[2:last]), i[1], i[last:]),
        name="product",
    )

    def finish(*place: Index) -> Any:
        batch, row, *outputs = place
        value = sums.scaled(row, lambda source, *tail: product[(batch, source, *outputs, *tail)])
        return apply_epilogue(layer, value, row, place, operands)

    shape = [x.shape[0], _extent(layer.weight.outputs), *results]
    return _pooled(layer, te.compute(shape, finish, name="epilogue"))


def _pooled(layer: TiledLayer, values: Any) -> Any:
    """The greatest element of each window; all of them without pooling."""
    if not layer.pool:
        return values

    def greatest(*place: Index) -> Any:
        within = [te.reduce_axis((0, _extent(size)), name="pool") for size in layer.pool]
        source = [
            at * size + offset
            for at, size, offset in zip(place[2:], layer.pool, within, strict=True)
        ]
        return te.max(values[(*place[:2], *source)], axis=within)

    extents = [e // size for e, size in zip(values.shape[2:], layer.pool, strict=True)]
    return te.compute([*values.shape[:2], *extents], greatest, name="pooled")


@dataclass(frozen=True)
class _Product:
    """The sums over the distinct rows, and the outputs as scaled copies of them.

    Where the scale follows the rows there is one sum per distinct row. Where it changes inside
    rows that are shared, there is one per segment between changes. Where nothing is shared it
    enters the sum.

    Attributes:
        layer: the call.
        signs: its signs and scales.
        load: the input for (place, row, taps), see `read_number`; taps is the column in `extents`.
        extents: the shape of the distinct columns: [K], or [channels / groups, k1..kn].
    """

    layer: TiledLayer
    signs: Signs
    load: Callable[[Sequence[Index], Index, Index], Any]
    extents: tuple[int, ...]

    @property
    def shape(self) -> list[Any]:
        """[distinct rows of all groups], then [segments] if there are several."""
        plan = self.layer.plan
        segments = [plan.segments] if plan.segments > 1 else []
        return [_extent(extent) for extent in (plan.groups * plan.distinct_rows, *segments)]

    def sum(self, place: Sequence[Index], distinct_row: Index, segment: Sequence[Index]) -> Any:
        row = self._first_row(distinct_row)
        if segment:
            return self._segment_sum(place, row, segment[0])
        taps = [te.reduce_axis((0, _extent(extent)), name="k") for extent in self.extents]
        column = _ravel(taps, self.extents)
        value = self.signs.apply(row, column, self.load(place, row, taps))
        if not (self.layer.scale_follows_rows or _scale_follows_columns(self.layer)):
            value = value * self.signs.scale_at(row, column)
        return te.sum(value, axis=taps)

    def scaled(self, row: Index, distinct: Callable[..., Any]) -> Any:
        """The output of `row` before bias; `distinct(row, segment?)` is a sum."""
        plan = self.layer.plan
        source = self._distinct_row(row)
        if plan.segments > 1:
            terms = [
                distinct(source, segment).astype("float32")
                * self.signs.scale_at(row, self._begin(row, segment))
                for segment in range(plan.segments)
            ]
            return reduce(lambda total, term: total + term, terms)
        value = distinct(source).astype("float32")
        return value * self.signs.scale_at(row, 0) if self.layer.scale_follows_rows else value

    def _segment_sum(self, place: Sequence[Index], row: Index, segment: Index) -> Any:
        run, columns = self._run, self.layer.plan.columns
        axis = te.reduce_axis((0, _extent(run)), name="k")
        column = segment * run - self._phase(row) + axis
        inside = tirx.all(column >= 0, column < columns)
        taps = _unravel(column, self.extents)
        value = self.signs.apply(row, column, self.load(place, row, taps))
        return te.sum(tirx.if_then_else(inside, value, _zero(self.layer)), axis=[axis])

    def _begin(self, row: Index, segment: int) -> Index:
        """A column of the segment; the last one of the row if the row does not reach it."""
        start = segment * self._run - self._phase(row)
        last = tirx.IntImm("int64", self.layer.plan.columns - 1)
        return tirx.min(tirx.max(start, tirx.IntImm("int64", 0)), last)

    @property
    def _run(self) -> int:
        weight = self.layer.weight
        period = weight.tile_length // gcd(weight.tile_length, weight.inputs)
        return gcd(weight.scale_length, period * weight.inputs)

    def _phase(self, row: Index) -> Index:
        weight = self.layer.weight
        return tirx.floormod(row * weight.inputs + weight.scale_offset, self._run)

    def _first_row(self, distinct_row: Index) -> Index:
        plan = self.layer.plan
        if plan.groups == 1:
            return distinct_row
        group = tirx.floordiv(distinct_row, plan.distinct_rows)
        return group * plan.rows + tirx.floormod(distinct_row, plan.distinct_rows)

    def _distinct_row(self, row: Index) -> Index:
        plan = self.layer.plan
        if plan.groups == 1:
            return tirx.floormod(row, plan.distinct_rows)
        group = tirx.floordiv(row, plan.rows)
        within = tirx.floormod(tirx.floormod(row, plan.rows), plan.distinct_rows)
        return group * plan.distinct_rows + within


def _folded(layer: TiledLayer, signs: Signs, x: Any) -> Callable[..., Any]:
    """What reads [..., distinct columns]: inputs of the same signs, added up, scaled if per column.

    The values are of `read_number`'s type.
    """
    plan, by_column = layer.plan, _scale_follows_columns(layer)
    if plan.distinct_columns == plan.columns and not by_column:
        return lambda *place: read_number(layer, x[place])

    def fold(*place: Index) -> Any:
        axis = te.reduce_axis((0, _extent(-(-plan.columns // plan.distinct_columns))), name="fold")
        column = axis * plan.distinct_columns + place[-1]
        value = read_number(layer, x[(*place[:-1], column)])
        if by_column:
            value = value * signs.scale_at(0, column)
        inside = column < plan.columns
        return te.sum(tirx.if_then_else(inside, value, _zero(layer)), axis=[axis])

    shape = [*x.shape[:-1], _extent(plan.distinct_columns)]
    folded = te.compute(shape, fold, name="folded")
    return lambda *place: folded[place]


def _padded(layer: TiledLayer, window: Window, x: Any) -> tuple[Any, list[Any]]:
    """The activation with zeros around it, and the spatial extents of the result."""
    kernel, quantization = layer.weight.shape[2:], layer.input_quantization
    zero = tirx.const(quantization.zero_point if quantization else 0, x.dtype)
    places = window.place(list(x.shape[2:]), kernel)
    results = [result for _, result in places]
    if window.auto_pad in ("NOTSET", "VALID") and not any(window.pads):
        return x, results
    extents = [
        (result - 1) * stride + reach
        for result, stride, reach in zip(results, window.strides, window.reach(kernel), strict=True)
    ]

    def pad(batch: Index, channel: Index, *place: Index) -> Any:
        source = [at - before for at, (before, _) in zip(place, places, strict=True)]
        inside = [
            condition
            for at, extent in zip(source, x.shape[2:], strict=True)
            for condition in (at >= 0, at < extent)
        ]
        return tirx.if_then_else(tirx.all(*inside), x[(batch, channel, *source)], zero)

    return te.compute([*x.shape[:2], *extents], pad, name="padded"), results


def read_number(layer: TiledLayer, value: Any) -> Any:
    """An element of the activation as float32, or int32 with the zero point taken off."""
    quantization = layer.input_quantization
    if quantization is None:
        return value.astype("float32")
    return value.astype("int32") - quantization.zero_point


def _zero(layer: TiledLayer) -> Any:
    """Nothing, of `read_number`'s type."""
    return tirx.const(0, "int32" if layer.input_quantization else "float32")


def _quantize(value: Any, quantization: Quantization) -> Any:
    """The nearest integer, the even one of two, within the type's limits."""
    low, high = map(_float, quantization.limits)
    steps = tirx.nearbyint(value / _float(quantization.scale)) + _float(quantization.zero_point)
    return tirx.max(tirx.min(steps, high), low).astype(quantization.dtype)


def _scale_follows_columns(layer: TiledLayer) -> bool:
    """Whether the scale can be applied to the inputs, which only a [K, N] weight offers."""
    weight = layer.weight
    if weight.layout == "NK" or layer.scale_follows_rows:
        return False
    return weight.scale_length % weight.outputs == 0 and weight.scale_offset % weight.outputs == 0


def _clip(value: Any, lower: float, upper: float) -> Any:
    """Clamp with the bound first, which a NaN in second place passes."""
    low, high = (tirx.const(bound, "float32") for bound in (lower, upper))
    if lower != -float("inf"):
        value = tirx.Max(low, value)
    return value if upper == float("inf") else tirx.Min(high, value)


def _gelu(value: Any) -> Any:
    return value * (tirx.erf(value * _float(sqrt(0.5))) * _float(0.5) + _float(0.5))


def _gelu_tanh(value: Any) -> Any:
    inner = value * (value * value * _float(0.044715) + _float(1.0)) * _float(0.7978845608028654)
    return value * (tirx.tanh(inner) * _float(0.5) + _float(0.5))


_ACTIVATIONS = {"gelu": _gelu, "gelu_tanh": _gelu_tanh}


def _float(value: float) -> Any:
    return tirx.const(value, "float32")


def _extent(value: int) -> Any:
    return tirx.IntImm("int64", value)


def _shifted_division(position: Index, shift: int, length: int) -> Index:
    """(position + shift) // length, by a carry.

    TVM 0.27 turns `((i + shift) // length) % count` in an index into another value (its iterator
    maps lose a shift of `length` or more), and a comparison keeps it from trying.
    """
    quotient, rest = divmod(shift, length)
    run = tirx.floordiv(position, length) + quotient
    if not rest:
        return run
    within = tirx.floormod(position, length)
    return run + tirx.Select(within >= length - rest, _extent(1), _extent(0))


def _ravel(places: Sequence[Index], shape: Sequence[int]) -> Index:
    pairs = zip(places[1:], shape[1:], strict=True)
    return reduce(lambda flat, pair: flat * pair[1] + pair[0], pairs, places[0])


def _unravel(flat: Index, shape: Sequence[int]) -> list[Index]:
    places = []
    for axis, extent in enumerate(shape):
        step = prod(shape[axis + 1 :])
        place = tirx.floordiv(flat, step)
        places.append(tirx.floormod(place, extent) if axis else place)
    return places
