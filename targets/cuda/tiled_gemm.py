"""TIR functions for Gemm with a tiled binary weight: distinct rows on tensor cores, then copies.

The weight arrives as `words` (see `pack_words`), the signs of its distinct rows alone; the dense
weight is stored nowhere. Each function launches one kernel. Its CUDA source travels in the
function, so that it is scheduled, fused around, planned and built like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder

from tbn_compile.targets.cuda.launching import (
    call_source,
    digest,
    is_compute_capability,
    multiprocessors,
)
from tbn_compile.targets.cuda.sources import (
    ELEMENT_TYPES,
    GemmShape,
    GemvShape,
    MatrixLayout,
    gemm_source,
    gemv_finish_source,
    gemv_source,
)
from tbn_compile.targets.cuda.tiled_mma import MmaProblem, elements_per_vector, launch_mma
from tbn_compile.tile import Signs

FEW_ROWS = 16
"""Up to so many rows of x the work is bound by reading the signs."""
_UNSPLIT_ROWS = 4
_GEMV_BLOCKS = 128
_FINISH_THREADS = 128
_FEWEST_TILES = 66
_BLOCK_INPUTS = 128
_ELEMENT_BYTES = 2
# Enumerations of the CUDA driver's cuTensorMapEncodeTiled.
_NO_INTERLEAVE, _SWIZZLE_128, _PROMOTE_128, _FILL_ZERO = 0, 3, 2, 0


# Lets kernels start before the one ahead of them ends; code for 9.0 waits for it itself.
_EARLY_START = ("tirx.kernel_launch_params", ["tirx.use_programtic_dependent_launch"])


class _SharedMemory(NamedTuple):
    """Bytes per block of the few-rows kernel."""

    least: int
    most: int


_MEMORY = _SharedMemory(0, 99 * 1024)
# More than half of a multiprocessor's, so that blocks of the next kernel, which start early, spread
# evenly.
_HOPPER_MEMORY = _SharedMemory(118 * 1024, 118 * 1024)


@dataclass(frozen=True)
class GemmProblem:
    """What the kernels compute: y[m, c·rows + r] = steps(scale · Σ_k ±x[m, k] + bias).

    Attributes:
        dtype: of x and y, "float16", "bfloat16" or "float32"; sums are float32.
        batch: rows of x, or None: known when the model runs.
        rows: distinct rows of the weight.
        copies: how often they repeat; the outputs are `rows · copies`.
        inputs: K.
        steps: CUDA statements on the float `value` after scale and bias.
    """

    dtype: str
    batch: int | None
    rows: int
    copies: int
    inputs: int
    steps: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """N."""
        return self.rows * self.copies

    @property
    def half_runs(self) -> bool:
        """Whether x and y are runs of 16 bytes of a type of two: most kernels need that."""
        return self.dtype in ELEMENT_TYPES and self.rows % 8 == 0 and self.inputs % 8 == 0

    def mma(self) -> MmaProblem:
        """The same for the kernel of any architecture and size."""
        run = elements_per_vector(self.dtype)
        layout = MatrixLayout(self.dtype, self.inputs % run == 0, self.rows % run == 0)
        return MmaProblem(layout, self.batch, self.rows, self.copies, self.inputs, self.steps)


def serves(dtype: str, rows: int, outputs: int, inputs: int) -> bool:
    """Whether there is a kernel: whole copies of the distinct rows, sizes of 32 bits."""
    known = dtype in (*ELEMENT_TYPES, "float32")
    return known and outputs % rows == 0 and max(outputs, inputs) < 2**31


def words_shape(rows: int, inputs: int) -> tuple[int, int, int]:
    """The shape of what `pack_words` gives."""
    return -(-inputs // _BLOCK_INPUTS), rows, 4


def pack_words(signs: Signs) -> npt.NDArray[np.uint32]:
    """The signs as tensor-core fragments want them.

    Args:
        signs: bool[rows, K], True for +1.

    Returns:
        uint32[ceil(K / 128), rows, 4]. Bits j and j + 16 of word c stand for inputs
        16 · (j // 2) + 8 · (j % 2) + 2 · c and the one after it; a set bit is -1.
    """
    rows, inputs = signs.shape
    blocks = -(-inputs // _BLOCK_INPUTS)
    negative = np.pad(~signs, [(0, 0), (0, blocks * _BLOCK_INPUTS - inputs)])
    # Axes: row, block, slice of 16, half, lane of a quad, one of a pair.
    bits = negative.reshape(rows, blocks, 8, 2, 4, 2).transpose(1, 0, 4, 5, 2, 3)
    return np.packbits(bits.reshape(blocks, rows, 4, 32), axis=-1, bitorder="little").view("<u4")[
        ..., 0
    ]


def gemm_function(problem: GemmProblem, architectures: Sequence[str]) -> Any:
    """A TIR function `(x, words, scale, bias, y)`, or `(…, y, sums)`, for the problem.

    x is T[M, K], words as from `pack_words`, scale and bias float32[N], y T[M, N]; each starts at a
    multiple of 16 bytes. `sums` is memory that it may overwrite, see `sums_shape`. Where M is known
    only at run time, the function holds kernels for few and for many rows and chooses by it. Where
    "90" is among the architectures, it also holds Hopper's own and chooses by the device.

    Args:
        problem: see `serves`.
        architectures: compute capabilities that there will be machine code for.
    """
    outputs, inputs = problem.outputs, problem.inputs
    with IRBuilder() as built, builder.prim_func():
        batch = T.int64() if problem.batch is None else tirx.IntImm("int64", problem.batch)
        kinds: dict[str, tuple[tuple[Any, ...], str]] = {
            "x": ((batch, inputs), problem.dtype),
            "words": (words_shape(problem.rows, inputs), "uint32"),
            "scale": ((outputs,), "float32"),
            "bias": ((outputs,), "float32"),
            "y": ((batch, outputs), problem.dtype),
        }
        sums = sums_shape(problem)
        if sums is not None:
            kinds["sums"] = (sums, "float32")
        handles = [builder.arg(name, T.handle()) for name in kinds]
        tensors = [
            T.match_buffer(handle, *kind)
            for handle, kind in zip(handles, kinds.values(), strict=True)
        ]
        _launch(problem, architectures, tensors, batch)
    return built.get().with_attr(*_EARLY_START) if "90" in architectures else built.get()


def sums_shape(problem: GemmProblem) -> tuple[int, int, int] | None:
    """Of the float32 sums that a few-rows layer of static batch keeps between two kernels, or None.

    The caller gives that memory, because a captured graph needs it to stay where it is; a dynamic
    batch is never captured, and its function takes memory from TVM's pool.
    """
    ragged = problem.rows % 8 or problem.inputs % 8
    if problem.batch is None or problem.batch > FEW_ROWS or ragged:
        return None
    shape = _gemv_shape(problem, problem.batch, _MEMORY.most)
    return (shape.splits, shape.lines, problem.rows) if shape.splits > 1 else None


def _launch(problem: GemmProblem, architectures: Sequence[str], tensors: Any, batch: Any) -> None:
    def launch_few(lines: int) -> None:
        _launch_by_device(
            architectures,
            lambda: _launch_few(problem, lines, _HOPPER_MEMORY, tensors, batch),
            lambda: _launch_few(problem, lines, _MEMORY, tensors, batch),
        )

    def launch_many() -> None:
        shape = gemm_shape(problem.batch, problem.rows)
        if not problem.half_runs or not _is_filled(problem, shape):
            launch_mma(problem.mma(), tensors, batch)
            return
        _launch_by_device(
            architectures,
            lambda: _launch_gemm(problem, shape, tensors, batch),
            lambda: launch_mma(problem.mma(), tensors, batch),
        )

    if problem.rows % 8 or problem.inputs % 8:
        launch_mma(problem.mma(), tensors, batch)
    elif problem.batch is None:
        with T.If(batch <= _UNSPLIT_ROWS):
            with T.Then():
                launch_few(_UNSPLIT_ROWS)
            with T.Else(), T.If(batch <= FEW_ROWS):
                with T.Then():
                    launch_few(FEW_ROWS)
                with T.Else():
                    launch_many()
    elif problem.batch <= FEW_ROWS:
        launch_few(problem.batch)
    else:
        launch_many()


def _is_filled(problem: GemmProblem, shape: GemmShape) -> bool:
    """Whether Hopper's large tiles keep half of its multiprocessors busy, or may do so."""
    if problem.batch is None:
        return True
    tiles = -(-problem.rows // shape.tile_rows) * -(-problem.batch // shape.columns)
    return tiles >= _FEWEST_TILES


def _launch_by_device(
    architectures: Sequence[str], on_hopper: Callable[[], None], elsewhere: Callable[[], None]
) -> None:
    if "90" not in architectures:
        elsewhere()
        return
    with T.If(is_compute_capability("9.0")):
        with T.Then():
            on_hopper()
        with T.Else():
            elsewhere()


def _launch_few(
    problem: GemmProblem, lines: int, memory: _SharedMemory, tensors: Any, batch: Any
) -> None:
    shape = _gemv_shape(problem, lines, memory.most)
    _launch_gemv(problem, shape, tensors, batch, memory.least)


def gemm_shape(batch: int | None, rows: int) -> GemmShape:
    """The division of the work that suits: tall tiles, because signs cost no shared memory.

    Args:
        batch: rows of x, or None.
        rows: distinct rows.
    """
    if rows <= 64:
        return GemmShape(groups=1, spans=1, columns=64, stages=8, store_rows=64, blocks=2)
    if rows <= 128:
        return GemmShape(groups=2, spans=1, columns=96, stages=10, store_rows=96)
    if rows % 192 == 0 and rows < 1024:
        return GemmShape(groups=3, spans=1, columns=96, stages=10, store_rows=96)
    if batch is not None and batch < 1024:
        return GemmShape(groups=2, spans=1, columns=64, stages=12, store_rows=64)
    return GemmShape(groups=2, spans=1, columns=256, stages=5, store_rows=64)


def _gemv_shape(problem: GemmProblem, lines: int, memory: int) -> GemvShape:
    """About as many blocks as Hopper has multiprocessors, each with 16 warps.

    Where x is short every block reads all of it. Else that would take longer than the signs do, so
    that blocks have more distinct rows and divide the inputs instead.

    Args:
        problem: what to compute.
        lines: the most rows of x.
        memory: bytes of shared memory that a block may have.
    """
    blocks = -(-problem.inputs // _BLOCK_INPUTS)
    row_warps, row_tiles, splits = 1, 2 if problem.rows > 16 * _GEMV_BLOCKS else 1, 1
    if lines > _UNSPLIT_ROWS:
        row_warps = next((warps for warps in (8, 4) if problem.rows >= 512 * warps), 2)
        row_tiles = 2
        groups = -(-problem.rows // (32 * row_warps))
        splits = max(1, min(_GEMV_BLOCKS // groups, 8, blocks))
    shares = min(16 // row_warps, 1 << (-(-blocks // splits)).bit_length() - 1)
    shape = GemvShape(row_warps, row_tiles, shares, splits, lines, stages=2)
    while shape.shared_bytes(problem.dtype) > memory:
        shape = replace(shape, input_warps=shape.input_warps // 2)
    return replace(shape, stages=max(2, min(5, memory // shape.stage_bytes(problem.dtype))))


def _launch_gemm(problem: GemmProblem, shape: GemmShape, tensors: Any, batch: Any) -> None:
    x, words, scale, bias, y = tensors
    rows, copies, inputs = problem.rows, problem.copies, problem.inputs
    size = _ELEMENT_BYTES
    x_map = _tensor_map(
        x,
        extents=(inputs, batch),
        strides=(inputs * size,),
        box=(64, shape.columns),
    )
    y_map = _tensor_map(
        y,
        extents=(rows, copies, batch),
        strides=(rows * size, problem.outputs * size),
        box=(64, 1, shape.store_rows),
    )
    tiles = -(-rows // shape.tile_rows) * tirx.floordiv(batch + shape.columns - 1, shape.columns)
    name = f"tiled_gemm_{digest(problem.dtype, problem.steps, shape)}"
    with (
        T.launch_thread("blockIdx.x", tirx.min(tiles, shape.blocks * multiprocessors())),
        T.launch_thread("threadIdx.x", shape.threads),
        T.attr(T.int32(0), "tirx.launch_bounds_min_blocks_per_sm", shape.blocks),
    ):
        shared = T.alloc_buffer((shape.shared_bytes,), "uint8", scope="shared.dyn")
        call_source(
            name,
            gemm_source(name, shape, problem.dtype, problem.steps),
            *(T.address_of(x_map), T.address_of(y_map), words.data, scale.data, bias.data),
            *(shared.data, batch.astype("int32"), rows, copies, inputs),
        )


def _launch_gemv(
    problem: GemmProblem, shape: GemvShape, tensors: Any, batch: Any, least_memory: int
) -> None:
    x, words, scale, bias, y, *given = tensors
    rows, copies, inputs = problem.rows, problem.copies, problem.inputs
    name = f"tiled_gemv_{digest(problem.dtype, problem.steps, shape)}"
    sums = given[0] if given else y
    if shape.splits > 1 and not given:
        sums = T.alloc_buffer((shape.splits, shape.lines, rows), "float32", scope="global")
    with (
        T.launch_thread("blockIdx.x", -(-rows // shape.rows) * shape.splits),
        T.launch_thread("threadIdx.x", shape.threads),
    ):
        memory = max(shape.shared_bytes(problem.dtype), least_memory)
        shared = T.alloc_buffer((memory,), "uint8", scope="shared.dyn")
        call_source(
            name,
            gemv_source(name, shape, problem.dtype, problem.steps),
            *(x.data, sums.data, words.data, scale.data, bias.data),
            *(shared.data, batch.astype("int32"), rows, copies, inputs),
        )
    if shape.splits > 1:
        _finish_gemv(problem, shape.splits, sums, tensors, batch)


def _finish_gemv(problem: GemmProblem, splits: int, sums: Any, tensors: Any, batch: Any) -> None:
    _, _, scale, bias, y, *_ = tensors
    name = f"tiled_gemv_finish_{digest(problem.dtype, problem.steps, splits)}"
    quads = tirx.floordiv(batch * problem.rows, 4)
    with (
        T.launch_thread("blockIdx.x", tirx.floordiv(quads + _FINISH_THREADS - 1, _FINISH_THREADS)),
        T.launch_thread("threadIdx.x", _FINISH_THREADS),
    ):
        call_source(
            name,
            gemv_finish_source(name, splits, problem.dtype, problem.steps),
            *(sums.data, y.data, scale.data, bias.data),
            *(batch.astype("int32"), problem.rows, problem.copies),
        )


def _tensor_map(
    tensor: Any, extents: Sequence[Any], strides: Sequence[Any], box: Sequence[int]
) -> Any:
    """A descriptor for the bulk copy engine, innermost axis first, 128-byte swizzle."""
    tensor_map = builder.Bind(
        T.tvm_stack_alloca("tensormap", 1), type_annotation=builder.TensorMap().ty
    )
    T.evaluate(
        T.call_packed(
            "runtime.cuTensorMapEncodeTiled",
            tensor_map,
            str(tensor.dtype),
            len(extents),
            tensor.data,
            *(*extents, *strides, *box, *[1] * len(extents)),
            *(_NO_INTERLEAVE, _SWIZZLE_128, _PROMOTE_128, _FILL_ZERO),
        )
    )
    return tensor_map
