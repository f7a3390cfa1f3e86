"""Gemm and convolution from blocks, for any batch and spatial extents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tbn_compile.passes.relax.distinct_rows import DistinctRows, RunScale
from tbn_compile.passes.relax.kernels import apply_epilogue
from tbn_compile.passes.relax.tiled_layer import TiledLayer, Window
from tbn_compile.targets.llvm.kernels.activations import table, table_parts
from tbn_compile.targets.llvm.kernels.block import Block, Load, spans_of, vector_of
from tbn_compile.targets.llvm.kernels.extents import own_extents, unravel
from tbn_compile.targets.llvm.kernels.packing import PackedSigns, pack_signs


@dataclass(frozen=True, eq=False)
class Kernel:
    """A layer's product and epilogue.

    Attributes:
        function: takes the activation, the constants, the operands of the epilogue, the result.
        constants: the packed signs, and the scales of the outputs if they have any.
    """

    function: Any
    constants: tuple[npt.NDArray[Any], ...]


def tiled_kernel(
    layer: TiledLayer, weight: DistinctRows, x: Sequence[Any], lanes: int, group: int = 1
) -> Kernel:
    """The kernel of a layer, from float32.

    Args:
        layer: the call.
        weight: its distinct rows.
        x: the extents of the activation, integers or symbolic: [M, distinct columns], or [batch,
            channels, d1..dn] with the padding. Residuals have the shape of the result for that.
            With tables that of a convolution has what `table_function` gives.
        lanes: float32 numbers of a vector register.
        group: inputs of a table; 1 for none.
    """
    signs = pack_signs(weight, layer.weight.shape[2:], lanes, group)
    scale = _output_scale(weight.row_scale, layer.weight.outputs)
    constants = [signs.words, *([] if scale is None else [scale])]
    operands = [step for step in layer.epilogue if step.operand is not None]
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        inputs = T.arg("x", T.buffer(own_extents(x), "float32"))
        packed = [T.arg("constant", T.buffer(each.shape, each.dtype.name)) for each in constants]
        shape = _result_shape(layer, list(inputs.ty.shape))
        added = [
            T.arg("operand", T.buffer(extents, str(step.operand.ty.dtype)))
            for step in operands
            for extents in [shape if step.kind == "residual" else shape[1:2]]
        ]
        y = T.arg("y", T.buffer(shape, layer.element_type))
        frame = _Frame(layer, weight, signs, inputs, packed, added, y)
        if layer.window is None:
            _emit_gemm(frame)
        else:
            _emit_conv(frame, layer.window)
    return Kernel(builder.get(), tuple(constants))


@dataclass(frozen=True, eq=False)
class _Frame:
    """The function under construction and its parameters."""

    layer: TiledLayer
    weight: DistinctRows
    signs: PackedSigns
    x: Any
    packed: Sequence[Any]
    operands: Sequence[Any]
    y: Any

    @property
    def copies(self) -> int:
        """Outputs that share a distinct row; the last one may exist for some rows only."""
        return -(-self.weight.plan.rows // self.weight.plan.distinct_rows)

    def store(self, total: Any, copy: Any, row: Any, group: Any, place: Sequence[Any]) -> None:
        """Write an output: a scaled copy of a distinct row's sum, behind the epilogue.

        Args:
            total: the sum.
            copy: which copy.
            row: which distinct row.
            group: of which group.
            place: in the result, without the output: [M] or [batch, spatial...].
        """
        plan = self.weight.plan
        within = copy * plan.distinct_rows + row
        output = group * plan.rows + within
        at = [place[0], output, *place[1:]]
        if len(self.packed) > 1:
            scale = self.packed[1]
            total = total * scale[output if int(scale.ty.shape[0]) > 1 else 0]
        value = apply_epilogue(self.layer, total, output, at, self.operands)
        with ExitStack() as condition:
            if plan.rows % plan.distinct_rows:
                condition.enter_context(T.If(within < plan.rows))
                condition.enter_context(T.Then())
            T.buffer_store(self.y, value, at)

    def load(self, *place: Any) -> Any:
        """An input for all lanes, or a table."""
        lanes = self.signs.lanes
        if self.signs.group > 1:
            return self.x[(*place, vector_of(lanes))]
        return T.broadcast(self.x[place], lanes)

    def full(self, first: Any, most: int) -> Any:
        """How many of `most` numbers from `first` on are those of distinct rows."""
        rows = self.signs.rows
        if rows % most == 0:
            return most
        return tirx.min(tirx.const(most, "int32"), rows - first)


def _emit_gemm(frame: _Frame) -> None:
    """Rows of X are the positions; stores run along the rows of the result."""
    signs, lanes = frame.signs, frame.signs.lanes
    for span in spans_of(frame.x.ty.shape[0], signs):
        block = Block(signs, frame.packed[0], 0, span.length)
        with T.serial(0, span.count) as index:
            first = span.start + index * span.length
            load = _gemm_inputs(frame, first, span.length)

            def write(row: Any, sums: Any, first: Any = first) -> None:
                complete, vectors = _complete(sums, (0, 1, 2)), int(sums.ty.shape[1])

                def store(copy: Any, position: Any, vector: Any, lane: Any) -> None:
                    total = complete[position, vector, lane]
                    within = row + vector * lanes + lane
                    frame.store(total, copy, within, 0, [first + position])

                filled = frame.full(row, vectors * lanes)
                with T.serial(0, frame.copies) as copy, T.serial(0, sums.ty.shape[0]) as position:
                    if signs.rows % lanes == 0:
                        with T.serial(0, filled // lanes) as vector, T.vectorized(0, lanes) as lane:
                            store(copy, position, vector, lane)
                    else:
                        with T.serial(0, filled) as lane:
                            store(copy, position, lane // lanes, lane % lanes)

            with T.serial(0, block.steps) as step:
                block.emit(step, load, write)


def _gemm_inputs(frame: _Frame, first: Any, positions: int) -> Load:
    """The inputs of a block of rows; with tables, those are made here, for all steps."""
    signs, lanes, x = frame.signs, frame.signs.lanes, frame.x
    if signs.group == 1:
        return lambda position, _tap, k: T.broadcast(x[first + position, k], lanes)
    tables = T.alloc_buffer((positions, signs.codes, lanes), "float32")
    every = vector_of(lanes)
    for begin, count, inputs in table_parts(signs.inside[-1], lanes):
        with T.serial(0, positions) as position, T.serial(0, count) as index:
            code = begin + index
            values = [x[first + position, code * signs.group + j] for j in range(inputs)]
            T.buffer_store(tables, table(values, lanes), [position, code, every])
    return lambda position, _tap, code: tables[position, code, every]


def _emit_conv(frame: _Frame, window: Window) -> None:
    """Neighbours along the last axis are the positions, and stores run along it."""
    batch, _, *spatial = frame.y.ty.shape
    signs = frame.signs
    with ExitStack() as loops:
        image, group, *outer = [
            loops.enter_context(T.serial(0, extent))
            for extent in (batch, signs.groups, *spatial[:-1])
        ]
        for span in spans_of(spatial[-1], signs):
            block = Block(signs, frame.packed[0], group, span.length)
            with T.serial(0, span.count) as index, T.serial(0, block.steps) as step:
                first = span.start + index * span.length

                def load(position: Any, tap: Sequence[Any], code: Any, first: Any = first) -> Any:
                    *inner, channel = unravel(code, signs.inside) if signs.group == 1 else [code]
                    place = [
                        at * stride + offset * dilation
                        for at, stride, offset, dilation in zip(
                            [*outer, first + position],
                            window.strides,
                            [*tap, *inner],
                            window.dilations,
                            strict=True,
                        )
                    ]
                    channels = signs.inside[-1] if signs.group == 1 else signs.codes
                    return frame.load(image, group * channels + channel, *place)

                def write(row: Any, sums: Any, first: Any = first) -> None:
                    complete = _complete(sums, (1, 2, 0))
                    positions, vectors, lanes = map(int, sums.ty.shape)
                    with (
                        T.serial(0, frame.copies) as copy,
                        T.serial(0, frame.full(row, vectors * lanes)) as lane,
                        T.vectorized(0, positions) as position,
                    ):
                        total = complete[lane // lanes, lane % lanes, position]
                        place = [image, *outer, first + position]
                        frame.store(total, copy, row + lane, group, place)

                block.emit(step, load, write)


def _complete(sums: Any, order: Sequence[int]) -> Any:
    """The sums in memory, their axes in another order: what reads them needs no constants."""
    shape = [int(extent) for extent in sums.ty.shape]
    complete = T.alloc_buffer([shape[axis] for axis in order], "float32", scope="local")
    with (
        T.unroll(0, shape[0]) as position,
        T.unroll(0, shape[1]) as vector,
        T.vectorized(0, shape[2]) as lane,
    ):
        place = (position, vector, lane)
        T.buffer_store(complete, sums[place], [place[axis] for axis in order])
    return complete


def _result_shape(layer: TiledLayer, x: Sequence[Any]) -> list[Any]:
    if layer.window is None:
        return [x[0], layer.weight.outputs]
    reach = layer.window.reach(layer.weight.shape[2:])
    spatial = [
        (extent - span) // stride + 1
        for extent, span, stride in zip(x[2:], reach, layer.window.strides, strict=False)
    ]
    return [x[0], layer.weight.outputs, *spatial]


def _output_scale(scale: RunScale | None, outputs: int) -> npt.NDArray[np.float32] | None:
    """float32[outputs], or one for all."""
    if scale is None or len(scale.values) == 1:
        return None if scale is None else scale.values
    return np.repeat(scale.values, scale.run)[:outputs]
