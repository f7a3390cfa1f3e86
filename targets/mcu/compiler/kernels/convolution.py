"""Convolutions without an im2col matrix: by patches, or by input positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from tbn_compile.passes.relax.distinct_rows import nibbles
from tbn_compile.passes.relax.tiled_layer import TiledLayer, Window
from tbn_compile.targets.mcu.compiler.kernels.products import (
    GROUP,
    Load,
    Passes,
    Product,
    add_from_tables,
    fill_table,
    fill_tables,
    grid,
    group_sizes,
    pack,
)
from tbn_compile.targets.mcu.compiler.kernels.tiled_function import (
    Arrays,
    CompleteSums,
    Outputs,
    Parameters,
    TiledFunction,
    extents_of,
)


@dataclass(frozen=True)
class Geometry:
    """The extents of a convolution.

    Attributes:
        batch: samples.
        channels: of one group's inputs.
        extents: spatial, of the input.
        results: spatial, of the result.
        kernel: taps along each axis.
        before: padding before each axis.
        strides, dilations: as in ONNX Conv.
    """

    batch: int
    channels: int
    extents: tuple[int, ...]
    results: tuple[int, ...]
    kernel: tuple[int, ...]
    before: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    @staticmethod
    def of(layer: TiledLayer, window: Window) -> Geometry:
        """The extents of a layer with that window."""
        batch, _, *extents = extents_of(layer.x.ty)
        _, channels, *kernel = layer.weight.shape
        places = window.place([tirx.IntImm("int64", extent) for extent in extents], kernel)
        return Geometry(
            batch,
            channels,
            tuple(extents),
            tuple(int(result) for _, result in places),
            tuple(kernel),
            tuple(int(before) for before, _ in places),
            window.strides,
            window.dilations,
        )

    @property
    def axes(self) -> range:
        """The spatial axes."""
        return range(len(self.kernel))

    def source(self, axis: int, result: Any, tap: Any) -> Any:
        """The input position that a tap meets at a position of the result."""
        return result * self.strides[axis] + tap * self.dilations[axis] - self.before[axis]

    def is_padded(self, axis: int) -> bool:
        """Whether some tap meets no input."""
        last = self.source(axis, self.results[axis] - 1, self.kernel[axis] - 1)
        return self.before[axis] > 0 or last >= self.extents[axis]

    def met(self, axis: int) -> int:
        """How many pairs of a tap and a position of the result meet an input."""
        return sum(
            0 <= self.source(axis, result, tap) < self.extents[axis]
            for result in range(self.results[axis])
            for tap in range(self.kernel[axis])
        )

    @property
    def overlaps(self) -> bool:
        """Whether patches of neighbours along the last axis share whole columns of inputs."""
        return self.dilations[-1] == 1 and self.strides[-1] < self.kernel[-1]

    @property
    def is_pointwise(self) -> bool:
        """Whether a patch is one input position."""
        return prod(self.kernel) == 1 and not any(map(self.is_padded, self.axes))


@dataclass(frozen=True)
class Strip:
    """A copy of the inputs behind consecutive output positions along the last axis.

    Column after column of [channels, k1..k(n-1)] inputs, so that the patch of each position is
    contiguous.

    Attributes:
        geometry: of the convolution.
        positions: how many output positions; more than one needs `Geometry.overlaps`.
    """

    geometry: Geometry
    positions: int

    @property
    def column(self) -> int:
        """Inputs in a column."""
        return self.geometry.channels * prod(self.geometry.kernel[:-1])

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return (self.positions - 1) * self.geometry.strides[-1] + self.geometry.kernel[-1]

    @property
    def column_groups(self) -> list[list[tuple[int, ...]]]:
        """The channel and taps of each input of a column, in groups of four."""
        places = list(np.ndindex(self.geometry.channels, *self.geometry.kernel[:-1]))
        return [places[i : i + GROUP] for i in range(0, len(places), GROUP)]

    @property
    def inputs(self) -> int:
        """Inputs in the strip: none where patches are positions of the input itself."""
        return 0 if self.geometry.is_pointwise else self.columns * self.column


def by_columns(function: TiledFunction, geometry: Geometry) -> TiledFunction:
    """The same convolution with its inputs in the order of a `Strip`."""
    signs = function.weight.signs
    taps = signs.reshape(len(signs), geometry.channels, *geometry.kernel)
    ordered = np.moveaxis(taps, -1, 1).reshape(signs.shape)
    return replace(function, weight=replace(function.weight, signs=ordered))


def strip_function(function: TiledFunction, product: Product, strip: Strip) -> tuple[Any, Arrays]:
    """A convolution, one output position after another, from copies of the inputs they cover.

    Args:
        function: the layer, `by_columns`.
        product: how the inputs of a patch are added up.
        strip: what is copied at a time.

    Returns:
        The PrimFunc and its constants.
    """
    geometry, weight = strip.geometry, function.weight
    repeats = geometry.results[-1] // strip.positions
    outer = (geometry.batch, weight.plan.groups, *geometry.results[:-1])

    def body(parameters: Parameters) -> None:
        workspace = function.allocate(product)
        copied = _allocate_strip(function, strip)
        with grid((*outer, repeats)) as (sample, group, *position, repeat):
            begin = repeat * strip.positions
            _copy(parameters, strip, copied, (sample, group, *position, begin))
            with grid((strip.positions,)) as (ahead,):
                place = (*position, begin + ahead)
                load = _patch(parameters, strip, copied, (sample, group, *place), ahead)
                outputs = Outputs(parameters, group, lambda output: (sample, output, *place))
                outputs.add_up(product, workspace, load, weight.first_pattern(group))

    return function.write(product.constants, body)


def column_function(function: TiledFunction, strip: Strip) -> tuple[Any, Arrays]:
    """A convolution, one output position after another, from tables that neighbours share.

    Each column of the strip has tables of its own; a row of output positions takes one pass.

    Args:
        function: the layer, `by_columns`.
        strip: what is tabulated at a time.

    Returns:
        The PrimFunc and its constants.
    """
    geometry, weight, sizes = strip.geometry, function.weight, group_sizes(strip.column)
    patterns = len(weight.signs)
    by_column = weight.signs.reshape(patterns, geometry.kernel[-1], strip.column)
    packed = pack(nibbles(by_column, GROUP).reshape(patterns, -1))
    outer = (geometry.batch, weight.plan.groups, *geometry.results[:-1])

    def body(parameters: Parameters) -> None:
        shape = (strip.columns * len(sizes), 2 ** max(sizes))
        tables = T.alloc_buffer(shape, function.arithmetic.table)
        (words,) = parameters.packed
        with grid(outer) as (sample, group, *position):
            with T.serial(0, strip.columns) as column:
                for number, inputs in enumerate(strip.column_groups):
                    values = [
                        _padded(
                            parameters,
                            geometry,
                            (sample, group, *position, 0),
                            channel,
                            (*taps, column),
                        )
                        for channel, *taps in inputs
                    ]
                    fill_table(tables, column * len(sizes) + number, values)
            with T.serial(0, strip.positions) as last:
                place = (*position, last)
                outputs = Outputs(parameters, group, lambda output: (sample, output, *place))
                pattern = weight.first_pattern(group)
                add_from_tables(
                    tables,
                    geometry.kernel[-1] * len(sizes),
                    lambda row, i: words[pattern + row, i],
                    CompleteSums(outputs),
                    weight.plan.distinct_rows,
                    last * (geometry.strides[-1] * len(sizes)),
                )

    return function.write((packed,), body)


def scatter_function(
    function: TiledFunction, geometry: Geometry, tables: int
) -> tuple[Any, Arrays]:
    """A convolution, one input position after another: its tables serve every tap and row.

    Args:
        function: the layer.
        geometry: of the convolution.
        tables: how many groups of channels are tabulated before a pass over taps and rows.

    Returns:
        The PrimFunc and its constants.
    """
    plan, passes = function.weight.plan, _scatter_passes(function, geometry, tables)

    def body(parameters: Parameters) -> None:
        table = passes.allocate(function.arithmetic.table)
        workspace = function.allocate_sums(plan.distinct_rows, *geometry.results)
        with grid((geometry.batch, plan.groups)) as (sample, group):
            outputs = Outputs(parameters, group, lambda output, *at: (sample, output, *at))
            sums = outputs.sums(workspace)
            sums.clear(plan.distinct_rows, geometry.results)
            pattern = function.weight.first_pattern(group)

            def visit(first: Any, sizes: Sequence[int], words: Callable[..., Any]) -> None:
                channel = group * geometry.channels + first
                with grid(geometry.extents) as position:
                    load = partial(_input, parameters, (sample, channel, *position))
                    fill_tables(table, sizes, load)
                    with _reached(geometry, position) as (taps, at):
                        tap = _ravel(taps, geometry.kernel)
                        add_from_tables(
                            table,
                            len(sizes),
                            lambda row, i: words(tap, pattern + row, i),
                            sums.at(*at),
                            plan.distinct_rows,
                        )

            passes.emit(parameters.packed, visit)
            outputs.write_all(sums, geometry.results)

    return function.write(passes.constants, body)


def _scatter_passes(function: TiledFunction, geometry: Geometry, tables: int) -> Passes:
    """The groups of channels: nibbles [taps, patterns, groups]."""
    signs = function.weight.signs
    by_tap = signs.reshape(len(signs), geometry.channels, -1).transpose(2, 0, 1)
    return Passes(nibbles(by_tap, GROUP), geometry.channels, tables)


def _input(parameters: Parameters, place: Sequence[Any], channel: Any) -> Any:
    """An input `channel` channels behind a place (sample, channel, *position)."""
    sample, first, *position = place
    return parameters.input(sample, first + channel, *position)


def _allocate_strip(function: TiledFunction, strip: Strip) -> Any:
    if not strip.inputs:
        return None
    return T.alloc_buffer((strip.inputs,), function.arithmetic.inputs)


def _copy(parameters: Parameters, strip: Strip, copied: Any, place: Sequence[Any]) -> None:
    """Copy the inputs behind a place (sample, group, position) and on, zeros in the padding."""
    if copied is None:
        return
    geometry, dtype = strip.geometry, copied.ty.dtype
    shape = (strip.columns, geometry.channels, *geometry.kernel[:-1])
    with grid(shape) as (column, channel, *taps):
        value = _padded(parameters, geometry, place, channel, (*taps, column)).astype(dtype)
        T.buffer_store(copied, value, [_ravel((column, channel, *taps), shape)])


def _padded(
    parameters: Parameters,
    geometry: Geometry,
    place: Sequence[Any],
    channel: Any,
    taps: Sequence[Any],
) -> Any:
    """The input under a tap of a place (sample, group, position), zero in the padding."""
    sample, group, *position = place
    sources = [geometry.source(axis, position[axis], tap) for axis, tap in enumerate(taps)]
    inside = [
        condition
        for axis in geometry.axes
        if geometry.is_padded(axis)
        for condition in (sources[axis] >= 0, sources[axis] < geometry.extents[axis])
    ]
    value = parameters.input(sample, group * geometry.channels + channel, *sources)
    if not inside:
        return value
    return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, value.ty.dtype))


def _patch(
    parameters: Parameters, strip: Strip, copied: Any, place: Sequence[Any], ahead: Any
) -> Load:
    """The inputs of a place (sample, group, position), `ahead` positions into the strip."""
    if copied is None:
        sample, group, *position = place
        sources = [strip.geometry.source(axis, at, 0) for axis, at in enumerate(position)]
        return partial(_input, parameters, (sample, group * strip.geometry.channels, *sources))
    first = ahead * (strip.geometry.strides[-1] * strip.column)
    return lambda k: copied[first + k].astype(parameters.function.arithmetic.sums)


@contextmanager
def _reached(geometry: Geometry, position: Sequence[Any]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Loop over the taps that meet an input position, and where in the result they do."""
    taps, results = [], []
    with ExitStack() as nest:
        for axis in geometry.axes:
            stride = geometry.strides[axis]
            tap = nest.enter_context(T.serial(0, geometry.kernel[axis]))
            ahead = position[axis] + geometry.before[axis] - tap * geometry.dilations[axis]
            met = [ahead >= 0, ahead < geometry.results[axis] * stride]
            if stride > 1:
                met.append(tirx.truncmod(ahead, stride) == 0)
            nest.enter_context(T.If(tirx.all(*met)))
            nest.enter_context(T.Then())
            taps.append(tap)
            results.append(tirx.truncdiv(ahead, stride) if stride > 1 else ahead)
        yield taps, results


def _ravel(places: Sequence[Any], shape: Sequence[int]) -> Any:
    flat = places[0]
    for place, extent in zip(places[1:], shape[1:], strict=True):
        flat = flat * extent + place
    return flat
