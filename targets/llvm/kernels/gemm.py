"""Gemm from blocks: distinct rows in the lanes, for any number of rows of input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tbn_compile.passes.relax.distinct_rows import DistinctRows
from tbn_compile.passes.relax.tiled_layer import TiledLayer
from tbn_compile.targets.llvm.kernels.block import Block, Load, spans_of, vector_of
from tbn_compile.targets.llvm.kernels.extents import least
from tbn_compile.targets.llvm.kernels.frame import Frame, Kernel, build_kernel
from tbn_compile.targets.llvm.kernels.mixing import Mixture
from tbn_compile.targets.llvm.kernels.packing import PackedSigns, pack_signs
from tbn_compile.targets.llvm.kernels.tables import table, table_parts


def gemm_kernel(
    layer: TiledLayer,
    weight: DistinctRows,
    x: Sequence[Any],
    lanes: int,
    group: int = 1,
    mixture: Mixture | None = None,
) -> Kernel:
    """The kernel of a Gemm, from float32.

    Args:
        layer: the call.
        weight: its distinct rows.
        x: the extents of the activation, integers or symbolic: [M, distinct columns].
        lanes: float32 numbers of a vector register.
        group: inputs of a table; 1 for none.
        mixture: how the outputs are mixed from the distinct rows; None: each is a copy of one.
    """
    signs = pack_signs(weight, lanes, group)
    return build_kernel(
        layer, weight, (x, "float32"), signs.words, mixture, lambda frame: _emit(frame, signs)
    )


def _emit(frame: Frame, signs: PackedSigns) -> None:
    """Rows of X are the positions; stores run along the rows of the result."""
    emit = _emit_mixed if frame.mixed else _emit_copies
    for span in spans_of(frame.x.ty.shape[0], signs):
        block = Block(signs, frame.packed[0], span.length)
        with T.serial(0, span.count) as index:
            first = span.start + index * span.length
            emit(frame, block, first, _inputs(frame, signs, first, span.length))


def _emit_copies(frame: Frame, block: Block, first: Any, load: Load) -> None:
    signs, lanes = block.signs, block.signs.lanes

    def write(row: Any, sums: Any) -> None:
        complete, vectors = _complete(sums), int(sums.ty.shape[1])

        def store(copy: Any, position: Any, vector: Any, lane: Any) -> None:
            total = complete[position, vector, lane]
            frame.store(total, copy, row + vector * lanes + lane, 0, [first + position])

        filled = least(vectors * lanes, signs.rows, row)
        with T.serial(0, frame.copies) as copy, T.serial(0, sums.ty.shape[0]) as position:
            if signs.rows % lanes == 0:
                with T.serial(0, filled // lanes) as vector, T.vectorized(0, lanes) as lane:
                    store(copy, position, vector, lane)
            else:
                with T.serial(0, filled) as lane:
                    store(copy, position, lane // lanes, lane % lanes)

    with T.serial(0, block.steps) as step:
        block.emit(step, load, write)


def _emit_mixed(frame: Frame, block: Block, first: Any, load: Load) -> None:
    lanes, positions = block.signs.lanes, block.positions
    complete = T.alloc_buffer((positions, block.signs.vectors * lanes), "float32")

    def keep(row: Any, sums: Any) -> None:
        with T.unroll(0, positions) as position, T.unroll(0, sums.ty.shape[1]) as vector:
            at = tirx.Ramp(row + vector * lanes, 1, lanes)
            T.buffer_store(complete, sums[position, vector, vector_of(lanes)], [position, at])

    with T.serial(0, block.steps) as step:
        block.emit(step, load, keep)
    with (
        T.serial(0, positions) as position,
        T.serial(0, frame.weight.plan.rows) as output,
    ):
        total = frame.mix(output, lambda row: complete[position, row])
        frame.store(total, 0, output, 0, [first + position])


def _inputs(frame: Frame, signs: PackedSigns, first: Any, positions: int) -> Load:
    """The inputs of a block of rows; with tables, those are made here, for all steps."""
    lanes, x = signs.lanes, frame.x
    if signs.group == 1:
        return lambda position, k: T.broadcast(x[first + position, k], lanes)
    tables = T.alloc_buffer((positions, signs.codes, lanes), "float32")
    every = vector_of(lanes)
    for begin, count, inputs in table_parts(signs.inputs, lanes):
        with T.serial(0, positions) as position, T.serial(0, count) as index:
            code = begin + index
            values = [x[first + position, code * signs.group + j] for j in range(inputs)]
            T.buffer_store(tables, table(values, lanes), [position, code, every])
    return lambda position, code: tables[position, code, every]


def _complete(sums: Any) -> Any:
    """The sums in memory: what reads them needs no constants."""
    shape = [int(extent) for extent in sums.ty.shape]
    complete = T.alloc_buffer(shape, "float32", scope="local")
    with (
        T.unroll(0, shape[0]) as position,
        T.unroll(0, shape[1]) as vector,
        T.vectorized(0, shape[2]) as lane,
    ):
        place = [position, vector, lane]
        T.buffer_store(complete, sums[tuple(place)], place)
    return complete
