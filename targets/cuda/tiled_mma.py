"""The kernel for any architecture from 8.0: how it divides a problem, and its launch in TIR."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import tirx
from tvm.script import tirx as T

from tbn_compile.targets.cuda.launching import call_source, digest
from tbn_compile.targets.cuda.sources import ImagesLayout, MatrixLayout, MmaShape, mma_source

Layout: TypeAlias = MatrixLayout | ImagesLayout

_COPIED = (
    MmaShape(4, 2, 1, 2, 8, 64, 3),
    MmaShape(2, 2, 1, 2, 4, 64, 4),
    MmaShape(1, 4, 1, 2, 4, 64, 3),
    MmaShape(1, 2, 4, 2, 2, 64, 3),
    MmaShape(2, 1, 8, 1, 2, 64, 2),
)
_FETCHED = (
    MmaShape(4, 2, 1, 2, 4, 32, 2),
    MmaShape(2, 2, 1, 2, 4, 32, 2),
    MmaShape(2, 2, 2, 2, 4, 32, 2),
    MmaShape(1, 4, 1, 2, 4, 32, 2),
    MmaShape(1, 4, 1, 1, 4, 32, 2),
    MmaShape(2, 1, 4, 2, 4, 32, 2),
    MmaShape(2, 1, 4, 1, 2, 32, 2),
    MmaShape(1, 1, 8, 1, 2, 32, 2),
)
_MULTIPROCESSORS = 128
_FEW_COLUMNS, _MANY_COLUMNS = 64, 16384


@dataclass(frozen=True)
class MmaProblem:
    """y = steps(scale · Σ_k ±x[column, k] + bias), for each column and output.

    Attributes:
        layout: of x and y.
        columns: rows of x, or positions of all images; None: known when the model runs.
        rows: distinct rows of the weight.
        copies: how often they repeat.
        inputs: K.
        steps: CUDA statements on the float `value` after scale and bias.
        geometry: of a convolution, the numbers of `GEOMETRY`.
    """

    layout: Layout
    columns: int | None
    rows: int
    copies: int
    inputs: int
    steps: tuple[str, ...] = ()
    geometry: tuple[int, ...] = ()


def elements_per_vector(dtype: str) -> int:
    """How many elements 16 bytes hold."""
    return 4 if dtype == "float32" else 8


def launch_mma(problem: MmaProblem, tensors: Sequence[Any], columns: Any) -> None:
    """The launch, inside of a TIR function.

    Args:
        problem: what to compute.
        tensors: buffers x, words (see `pack_words`), scale, bias and y.
        columns: how many there are, an int64 expression.
    """
    if problem.columns is not None:
        _launch(problem, choose_shape(problem, problem.columns), tensors, columns)
        return
    few, many = (choose_shape(problem, count) for count in (_FEW_COLUMNS, _MANY_COLUMNS))
    if few == many:
        _launch(problem, many, tensors, columns)
        return
    with T.If(columns <= _crossing(problem, few, many)):
        with T.Then():
            _launch(problem, few, tensors, columns)
        with T.Else():
            _launch(problem, many, tensors, columns)


def choose_shape(problem: MmaProblem, columns: int) -> MmaShape:
    """The division of the work that should take the least time."""
    shapes = _COPIED if problem.layout.copied else _FETCHED
    return min(shapes, key=lambda shape: _cycles(problem, shape, columns))


def _crossing(problem: MmaProblem, few: MmaShape, many: MmaShape) -> int:
    """The most columns for which the shape for few is no worse, to a power of two."""
    columns = _FEW_COLUMNS
    while columns < _MANY_COLUMNS and (
        _cycles(problem, few, 2 * columns) <= _cycles(problem, many, 2 * columns)
    ):
        columns *= 2
    return columns


def _cycles(problem: MmaProblem, shape: MmaShape, columns: int) -> float:
    """A guess at the time: waves of tiles, no less than the latency of a tile's stages.

    Its numbers were fitted to 47 problems on a GPU of compute capability 9.0, where the shape that
    it picks takes 1.02 times as long as the best one on average and 1.3 times at worst.
    """
    copied, wide = problem.layout.copied, problem.layout.dtype == "float32"
    tiles = -(-problem.rows // shape.tile_rows) * -(-columns // shape.tile_columns)
    steps = -(-problem.inputs // shape.stage_inputs)
    # Beside the products: signs unpacked once per warp, x read once per run of rows in a warp.
    product = 1 / 1024 + 1 / (800 * shape.column_tiles) + 1 / (480 * shape.row_tiles)
    # Short runs of positions waste most of a read.
    load = 0.1 if problem.geometry == () else 0.1 + 1.6 / shape.tile_columns
    per_input = shape.tile_rows * product * (3 if wide else 1) + load
    per_column = per_input * steps * shape.stage_inputs
    per_column += 0.04 * shape.tile_rows * problem.copies * (4 if wide else 2)
    work = -(-tiles // _MULTIPROCESSORS) * shape.tile_columns * per_column
    latency = steps * (200 if copied else 550)
    return max(work, latency) + 0.5 * min(work, latency)


def _launch(problem: MmaProblem, shape: MmaShape, tensors: Sequence[Any], columns: Any) -> None:
    x, words, scale, bias, y = tensors
    layout = problem.layout
    name = f"tiled_mma_{digest(layout, problem.steps, shape)}"
    row_tiles = -(-problem.rows // shape.tile_rows)
    tiles = row_tiles * tirx.floordiv(columns + shape.tile_columns - 1, shape.tile_columns)
    with ExitStack() as stack:
        stack.enter_context(T.launch_thread("blockIdx.x", tiles))
        stack.enter_context(T.launch_thread("threadIdx.x", shape.threads))
        shared = T.alloc_buffer((shape.shared_bytes(layout),), "uint8", scope="shared.dyn")
        call_source(
            name,
            mma_source(name, shape, layout, problem.steps),
            *(x.data, y.data, words.data, scale.data, bias.data, shared.data),
            *(columns.astype("int32"), problem.rows, problem.copies, problem.inputs),
            *problem.geometry,
        )
