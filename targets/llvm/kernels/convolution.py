"""Convolutions: neighbouring outputs in the lanes, and tables of signed sums in the cache.

A block of outputs is computed at a time. The inputs that it needs are copied into planes with zeros
around them; for a few channels at a time, every sum of theirs with any signs goes into a table, for
all positions of a plane. A row of the weight then costs one load and one addition for each table
and tap of the kernel.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.tirx.script import builder as T

from tbn_compile.passes.relax.distinct_rows import DistinctRows
from tbn_compile.passes.relax.tiled_layer import TiledLayer, Window
from tbn_compile.targets.llvm.kernels.codes import pack_codes
from tbn_compile.targets.llvm.kernels.conv_schedule import Schedule
from tbn_compile.targets.llvm.kernels.extents import known, least, ravel, unravel
from tbn_compile.targets.llvm.kernels.frame import Frame, Kernel, build_kernel
from tbn_compile.targets.llvm.kernels.mixing import Mixture


def conv_kernel(
    layer: TiledLayer,
    window: Window,
    weight: DistinctRows,
    schedule: Schedule,
    mixture: Mixture | None = None,
) -> Kernel:
    """The kernel of a convolution.

    Args:
        layer: the call.
        window: of it.
        weight: its distinct rows.
        schedule: how it is cut up.
        mixture: how the outputs are mixed from the distinct rows; None: each is a copy of one.
    """
    x = list(layer.x.ty.shape.values), str(layer.x.ty.dtype)
    signs = pack_codes(weight, schedule.layout)

    def emit(frame: Frame) -> None:
        axes = len(schedule.grid.axes)
        _Convolution(frame.with_axes(axes), window, schedule).emit()

    return build_kernel(layer, weight, x, signs, mixture, emit)


@dataclass(frozen=True, eq=False)
class _Convolution:
    """The body of the function."""

    frame: Frame
    window: Window
    schedule: Schedule

    def emit(self) -> None:
        layout, grid = self.schedule.layout, self.schedule.grid
        channels, rows = layout.tables * layout.inputs, self.frame.weight.plan.distinct_rows
        planes = T.alloc_buffer((channels, grid.planes, grid.length), "float32")
        shape = (layout.tables, grid.planes, 2**layout.inputs, grid.length)
        tables = T.alloc_buffer(shape, "float32")
        sums = T.alloc_buffer((rows, grid.positions), "float32")
        batch, _, *spatial = self.frame.y.ty.shape
        with _loops([channels, grid.planes, grid.length]) as place:  # what no image reaches
            T.buffer_store(planes, _ZERO, place)
        blocks = [-(-e // n) for e, n in zip(spatial, grid.outputs, strict=True)]
        with _loops([batch, self.window.groups, *blocks]) as (image, group, *block):
            starts = [at * outputs for at, outputs in zip(block, grid.outputs, strict=True)]
            with _loops([layout.chunks]) as (chunk,):
                self._copy(planes, image, group, chunk, starts)
                if layout.chunks > 1:
                    self._prefetch(image, group, chunk + 1, starts)
                self._tabulate(planes, tables)
                self._add_up(tables, sums, group, chunk)
            self._write(sums, image, group, starts)

    def _copy(self, planes: Any, image: Any, group: Any, chunk: Any, starts: Sequence[Any]) -> None:
        """Part the inputs of a block and chunk into planes, zeros where the image has none."""
        layout, grid, x = self.schedule.layout, self.schedule.grid, self.frame.x
        spatial = x.ty.shape[2:]
        paddings = self._paddings(spatial)
        count, width = layout.tables * layout.inputs, grid.extents[-1]
        with _loops([count, *grid.phases, *grid.extents[:-1]]) as (index, *rest):
            phases, outer = rest[: len(grid.axes)], rest[len(grid.axes) :]
            origins = [
                start * axis.stride + phase - padding
                for start, axis, phase, padding in zip(
                    starts, grid.axes, phases, paddings, strict=True
                )
            ]
            stride = grid.axes[-1].stride
            lines = [
                o + at * axis.stride
                for o, at, axis in zip(origins[:-1], outer, grid.axes[:-1], strict=True)
            ]
            plane = ravel(phases, grid.phases)
            row = (index, plane, outer)
            _along(width, grid.lanes, lambda column: self._fill(planes, row, column, _ZERO))
            first = _clamp((stride - 1 - origins[-1]) // stride, width)
            end = _clamp((spatial[-1] + stride - 1 - origins[-1]) // stride, width)
            channel = chunk * count + index
            conditions = [channel < layout.channels] if layout.channels % count else []
            for line, extent in zip(lines, spatial[:-1], strict=True):
                conditions += [line >= 0, line < extent]
            with ExitStack() as inside:
                if conditions:
                    inside.enter_context(T.If(tirx.all(*conditions)))
                    inside.enter_context(T.Then())

                def copy(column: Any) -> None:
                    source = [*lines, origins[-1] + (first + column) * stride]
                    value = x[(image, group * layout.channels + channel, *source)]
                    self._fill(planes, row, first + column, value.astype("float32"))

                _along(end - first, grid.lanes, copy)

    def _prefetch(self, image: Any, group: Any, chunk: Any, starts: Sequence[Any]) -> None:
        """Ask the second-level cache for the inputs of a chunk while another is worked on."""
        layout, grid, x = self.schedule.layout, self.schedule.grid, self.frame.x
        paddings = self._paddings(x.ty.shape[2:])
        count = layout.tables * layout.inputs
        per_line = _LINE_BYTES // tvm_ffi.dtype(str(x.ty.dtype)).itemsize
        *heights, width = (axis.extent * axis.stride for axis in grid.axes)
        with _loops([count, *heights, -(-width // per_line)]) as (index, *lines, line):
            origins = [
                start * axis.stride - padding
                for start, axis, padding in zip(starts, grid.axes, paddings, strict=True)
            ]
            place = map(operator.add, origins, [*lines, line * per_line])
            channel = group * layout.channels + chunk * count + index
            address = T.address_of(x[(image, channel, *place)])
            T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, *_TO_SECOND_LEVEL))

    def _paddings(self, spatial: Sequence[Any]) -> list[Any]:
        """Zeros before each axis."""
        kernel = self.schedule.layout.kernel
        if len(kernel) < len(self.window.strides):  # an image that counts as one row
            return [0] * len(kernel)
        return [before for before, _ in self.window.place(list(spatial), kernel)]

    def _fill(
        self, planes: Any, row: tuple[Any, Any, Sequence[Any]], column: Any, value: Any
    ) -> None:
        index, plane, outer = row
        place = ravel([*outer, column], self.schedule.grid.extents)
        T.buffer_store(planes, value, [index, plane, place])

    def _tabulate(self, planes: Any, tables: Any) -> None:
        """Every sum of a table's channels with any signs."""
        layout, grid = self.schedule.layout, self.schedule.grid
        with _loops([layout.tables, grid.planes, grid.length // grid.lanes]) as (
            table,
            plane,
            vector,
        ):
            every = tirx.Ramp(vector * grid.lanes, 1, grid.lanes)
            values = [
                planes[table * layout.inputs + channel, plane, every]
                for channel in range(layout.inputs)
            ]
            for entry, total in enumerate(_signed_sums(values, grid.lanes)):
                T.buffer_store(tables, total, [table, plane, entry, every])

    def _add_up(self, tables: Any, sums: Any, group: Any, chunk: Any) -> None:
        """Add what a chunk's tables hold for each row to its sums."""
        layout, grid = self.schedule.layout, self.schedule.grid
        rows = int(sums.ty.shape[0])
        together = 2 - rows % 2
        words, mask = self.frame.packed[0], tirx.const(2**layout.inputs - 1, "uint32")
        with _loops([rows // together, grid.positions // grid.width]) as (several, block):
            shape = (together, grid.vectors, grid.lanes)
            totals = T.alloc_buffer(shape, "float32", scope="local")
            every = tirx.Ramp(0, 1, grid.lanes)

            def at(vector: Any, shift: Any = 0, block: Any = block) -> Any:
                first = block * grid.width + vector * grid.lanes + shift
                return tirx.Ramp(first, 1, grid.lanes)

            with T.unroll(0, together) as row, T.unroll(0, grid.vectors) as vector:
                so_far = sums[several * together + row, at(vector)]
                zeros = T.broadcast(_ZERO, grid.lanes)
                value = zeros if layout.chunks == 1 else tirx.Select(chunk == 0, zeros, so_far)
                T.buffer_store(totals, value, [row, vector, every])
            with (
                _loops(layout.outer) as outer,
                T.unroll(0, prod(layout.inner)) as code,
                T.unroll(0, together) as row,
                T.unroll(0, grid.vectors) as vector,
            ):
                *inner, table = unravel(code, layout.inner)
                plane, shift = grid.place([*outer, *inner])
                word = words[
                    group,
                    chunk,
                    several * together + row,
                    ravel(outer, layout.outer),
                    code // layout.codes_per_word,
                ]
                bit = (code % layout.codes_per_word * layout.inputs).astype("uint32")
                entry = ((word >> bit) & mask).astype("int32")
                total = totals[row, vector, every] + tables[table, plane, entry, at(vector, shift)]
                T.buffer_store(totals, total, [row, vector, every])
            with T.unroll(0, together) as row, T.unroll(0, grid.vectors) as vector:
                value = totals[row, vector, every]
                T.buffer_store(sums, value, [several * together + row, at(vector)])

    def _write(self, sums: Any, image: Any, group: Any, starts: Sequence[Any]) -> None:
        """The outputs of a block: scaled copies behind the epilogue."""
        grid, frame = self.schedule.grid, self.frame
        _, _, *spatial = frame.y.ty.shape
        counts = list(map(least, grid.outputs, spatial, starts))
        *lines, width = counts
        rows, copies = int(sums.ty.shape[0]), frame.copies
        if frame.mixed:
            rows, copies = frame.weight.plan.rows, 1
        with _loops([rows, copies, *lines]) as (row, copy, *at):

            def store(column: Any) -> None:
                within = [*at, column]
                place = [start + offset for start, offset in zip(starts, within, strict=True)]
                flat = ravel(within, grid.extents)
                total = frame.mix(row, lambda d: sums[d, flat]) if frame.mixed else sums[row, flat]
                frame.store(total, copy, row, group, [image, *place])

            _along(width, grid.lanes, store)


_ZERO = tirx.const(0.0, "float32")
_LINE_BYTES = 64
_TO_SECOND_LEVEL = (0, 2, 1)
"""LLVM's prefetch: to read, with some locality, data."""


class _loops(ExitStack):  # noqa: N801 -- reads like T.serial
    """Nested loops; gives their variables, and 0 in the place of a loop of one turn."""

    def __init__(self, extents: Sequence[Any]) -> None:
        super().__init__()
        self._extents = extents

    def __enter__(self) -> Any:
        super().__enter__()
        return [
            0 if known(extent) == 1 else self.enter_context(T.serial(0, extent))
            for extent in self._extents
        ]


def _along(extent: Any, lanes: int, emit: Callable[[Any], None]) -> None:
    """A loop, cut into vectors and shorter ones where its extent is known."""
    count = known(extent)
    if count is None:
        with T.serial(0, extent) as place:
            emit(place)
        return
    done = 0
    while count - done:
        width = min(lanes, 1 << (count - done).bit_length() - 1)
        vectors = (count - done) // width
        with T.serial(0, vectors) as vector, T.vectorized(0, width) as lane:
            emit(done + vector * width + lane)
        done += vectors * width


def _signed_sums(values: Sequence[Any], lanes: int) -> list[Any]:
    """All sums of vectors, each added or else taken off: bit j of a sum's number is for value j."""
    sums = [T.broadcast(_ZERO, lanes) - values[0], values[0]]
    for value in values[1:]:
        sums = [total - value for total in sums] + [total + value for total in sums]
    return sums


def _clamp(value: Any, most: int) -> Any:
    if (constant := known(value)) is not None:
        return min(max(constant, 0), most)
    return tirx.min(tirx.max(value, 0), most)
