"""TIR functions for attention: one kernel that reads queries, keys and values where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder

from tbn_compile.passes.relax.affine_view import AffineView, Extent, int64, is_one, product
from tbn_compile.targets.cuda.attention_sources import (
    ELEMENT_BYTES,
    AttentionKind,
    AttentionShape,
    attention_source,
)
from tbn_compile.targets.cuda.launching import call_source, digest

LARGEST_HEAD = 256
_MULTIPROCESSORS = 108
"""Of the GPU that blocks of many queries shall fill, one of compute capability 8.0."""
_SHARED_BYTES = 99 * 1024
"""What a block may have of shared memory, on any GPU of compute capability 8.0 or more."""
_ONE_TILE_COST = 1.25
"""Of a run of 16 queries whose warp has one, beside one whose warp reads keys for two."""


@dataclass(frozen=True)
class AttentionProblem:
    """output = softmax(scale · query · keyᵀ + mask) · value, over the last two axes.

    All are views of tensors of one type that the kernel takes; their leading axes are the same.

    Attributes:
        inputs: query [*batch, queries, head size]; key and value [*batch, keys, head size]; and, if
            there is a mask, [*batch, queries, keys].
        output: [*batch, queries, head size], the whole of a tensor that is written.
        scale: a number greater than 0.
    """

    inputs: tuple[AffineView, ...]
    output: AffineView
    scale: float

    @property
    def views(self) -> tuple[AffineView, ...]:
        """All that there are."""
        return (*self.inputs, self.output)

    @property
    def masked(self) -> bool:
        """Whether there is a mask."""
        return len(self.inputs) == 4

    @property
    def kind(self) -> AttentionKind:
        """What the kernel is compiled for."""
        dtype, head_size = str(self.output.root.ty.dtype), self.output.shape[-1]
        run = 16 // ELEMENT_BYTES[dtype]
        rows = (*self.inputs[:3], self.output)
        aligned = head_size % run == 0 and all(view.has_aligned_rows(run) for view in rows)
        return AttentionKind(dtype, head_size, aligned, self.masked)

    def symbols(self) -> list[Any]:
        """The variables in shapes and places, each once."""
        numbers = [
            number
            for view in self.views
            for number in (*view.root.ty.shape.values, *view.numbers())
        ]
        uses = [tirx.Evaluate(int64(number)) for number in numbers]
        return list(tirx.analysis.undefined_vars(tirx.SeqStmt(uses)))


def is_regular(view: AffineView) -> bool:
    """Whether rows and neighbours in a row lie at equal distances, as those of a mask must."""
    return view.stride(-2) is not None and view.stride(-1) is not None


def is_readable(view: AffineView) -> bool:
    """Whether besides neighbours in a row lie side by side, as those of other inputs must."""
    return is_regular(view) and (is_one(view.stride(-1)) or is_one(view.shape[-1]))


def attention_function(problem: AttentionProblem) -> Any:
    """A TIR function `(query, key, value, mask, *symbols, output)`; without a mask, of the others.

    Its tensors are the roots of the problem's views, each from a multiple of 16 bytes on.

    Args:
        problem: with rows that are readable, of a head size up to `LARGEST_HEAD`.
    """
    own = [(symbol, tirx.Var(symbol.name, symbol.ty)) for symbol in problem.symbols()]

    def renamed(extent: Extent) -> Extent:
        if isinstance(extent, int):
            return extent
        return tvm_ffi.structural_map(
            extent,
            (tirx.Var, lambda found: next((mine for it, mine in own if it.same_as(found)), found)),
        )

    names = ("query", "key", "value", "mask")[: len(problem.inputs)]
    with IRBuilder() as built, builder.prim_func():
        handles = [builder.arg(name, T.handle()) for name in names]
        for _, mine in own:
            builder.arg(mine.name, mine)
        handles.append(builder.arg("output", T.handle()))
        tensors = [
            T.match_buffer(
                handle, tuple(map(renamed, view.root.ty.shape.values)), view.root.ty.dtype
            )
            for handle, view in zip(handles, problem.views, strict=True)
        ]
        _launch(problem, tensors, [view.mapped(renamed) for view in problem.views])
    return built.get()


def few_queries_shape(kind: AttentionKind, keys: int | None) -> AttentionShape:
    """The division that gives each multiprocessor some of little work: warps share the keys.

    Args:
        kind: of the kernel.
        keys: how many there are, or None.
    """
    most = _most_stage_keys(kind) // 16
    if keys is not None and keys <= 16 * min(5, most):
        return AttentionShape(row_warps=1, row_tiles=1, shares=-(-keys // 16), keys=16)
    if most >= 8:
        return AttentionShape(row_warps=1, row_tiles=1, shares=4, keys=32)
    return AttentionShape(row_warps=1, row_tiles=1, shares=min(4, most), keys=16)


def many_queries_shape(
    kind: AttentionKind, queries: int | None, keys: int | None
) -> AttentionShape:
    """The division that reads keys least often, with few rows that are no queries.

    Args:
        kind: of the kernel.
        queries: how many there are, or None.
        keys: the same.
    """
    most = _most_stage_keys(kind)
    stage = min(64, most)
    if keys is not None and keys <= min(96, most):
        stage = max(16, -(-keys // 16) * 16)
    shapes = [AttentionShape(warps, 1, 1, stage) for warps in (4, 5, 6, 7, 8)]
    if ELEMENT_BYTES[kind.dtype] == 2 and kind.padded_head <= 64:
        shapes.insert(0, AttentionShape(4, 2, 1, stage))
    if queries is None:
        return shapes[0]

    def cost(shape: AttentionShape) -> float:
        rows = -(-queries // shape.rows) * shape.rows
        return rows * (_ONE_TILE_COST if shape.row_tiles == 1 else 1.0)

    return min(shapes, key=cost)


def _most_stage_keys(kind: AttentionKind) -> int:
    """How many keys two stages of shared memory hold on any GPU, in runs of 16."""
    run = AttentionShape(row_warps=1, row_tiles=1, shares=1, keys=16).shared_bytes(kind)
    return _SHARED_BYTES // run * 16


def _launch(problem: AttentionProblem, tensors: Sequence[Any], views: Sequence[AffineView]) -> None:
    kind, query = problem.kind, views[0]
    queries, keys, batch = query.shape[-2], views[1].shape[-2], product(query.shape[:-2])
    known = [extent if isinstance(extent, int) else None for extent in (queries, keys)]
    many, few = many_queries_shape(kind, *known), few_queries_shape(kind, known[1])
    blocks = batch * _tiles(queries, many)
    if not isinstance(blocks, int):
        with T.If(blocks < _MULTIPROCESSORS):
            with T.Then():
                _launch_shape(problem, few, tensors, views)
            with T.Else():
                _launch_shape(problem, many, tensors, views)
        return
    shape = few if blocks < _MULTIPROCESSORS else many
    _launch_shape(problem, shape, tensors, views)


def _tiles(queries: Extent, shape: AttentionShape) -> Extent:
    return (queries + shape.rows - 1) // shape.rows


def _launch_shape(
    problem: AttentionProblem,
    shape: AttentionShape,
    tensors: Sequence[Any],
    views: Sequence[AffineView],
) -> None:
    kind = problem.kind
    queries, keys, batch = views[0].shape[-2], views[1].shape[-2], product(views[0].shape[:-2])
    tiles = _tiles(queries, shape)
    name = f"attention_{digest(kind, shape)}"
    with (
        T.launch_thread("blockIdx.x", int64(batch * tiles)) as block,
        T.launch_thread("threadIdx.x", shape.threads),
    ):
        shared = T.alloc_buffer((shape.shared_bytes(kind),), "uint8", scope="shared.dyn")
        index = tirx.floordiv(block.astype("int64"), tiles)
        tile = tirx.floormod(block.astype("int64"), tiles)
        axes = range(len(views[0].axes) - 2)
        places = [
            int64(number) for view in views for number in (view.place(index, axes), view.stride(-2))
        ]
        if problem.masked:
            places.append(int64(views[3].stride(-1)))
        call_source(
            name,
            attention_source(name, kind, shape),
            *(tensor.data for tensor in tensors),
            shared.data,
            *(int64(number).astype("int32") for number in (tile, queries, keys)),
            tirx.FloatImm("float32", problem.scale),
            *places,
        )
