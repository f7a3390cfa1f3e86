"""TIR functions for Gemm with a tiled binary weight: distinct rows on tensor cores, then copies.

The weight arrives as `words` (see `pack_words`), the signs of its distinct rows alone; the dense
weight is stored nowhere. Each function launches one kernel. Its CUDA source travels in the
function, so that it is scheduled, fused around, planned and built like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder

from tbn_compile.targets.cuda.sources import (
    ELEMENT_TYPES,
    GemmShape,
    GemvShape,
    gemm_source,
    gemv_source,
)
from tbn_compile.tile import Signs

Architecture: TypeAlias = Literal["hopper", "any"]
"""Whether the code will run on compute capability 9.0 alone, or on any from 8.0."""

FEW_ROWS = 16
"""Up to so many rows of x the work is bound by reading the signs."""
_BLOCK_INPUTS = 128
_DEVICE_CUDA = 2
_MULTIPROCESSORS = 7
_ELEMENT_BYTES = 2
# Enumerations of the CUDA driver's cuTensorMapEncodeTiled.
_NO_INTERLEAVE, _SWIZZLE_128, _PROMOTE_128, _FILL_ZERO = 0, 3, 2, 0


@dataclass(frozen=True)
class GemmProblem:
    """What the kernels compute: y[m, c·rows + r] = steps(scale · Σ_k ±x[m, k] + bias).

    Attributes:
        dtype: of x and y, "float16" or "bfloat16"; sums are float32.
        batch: rows of x, or None: known when the model runs.
        rows: distinct rows of the weight, a multiple of 8.
        copies: how often they repeat; the outputs are `rows · copies`.
        inputs: K, a multiple of 8.
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


def serves(dtype: str, rows: int, outputs: int, inputs: int) -> bool:
    """Whether there is a kernel: 16-byte runs of x and y, whole copies, a type of two bytes."""
    aligned = rows % 8 == 0 and inputs % 8 == 0 and outputs % rows == 0
    return aligned and dtype in ELEMENT_TYPES and max(outputs, inputs) < 2**31


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


def gemm_function(problem: GemmProblem, architecture: Architecture) -> Any:
    """A TIR function `(x, words, scale, bias, y)` for the problem.

    x is T[M, K], words as from `pack_words`, scale and bias float32[N], y T[M, N]; each starts at a
    multiple of 16 bytes. Where M is known only at run time, the function holds both kernels and
    chooses by it.

    Args:
        problem: see `serves`.
        architecture: what the code will run on.
    """
    outputs, inputs = problem.outputs, problem.inputs
    blocks = -(-inputs // _BLOCK_INPUTS)
    with IRBuilder() as built, builder.prim_func():
        handles = [builder.arg(name, T.handle()) for name in ("x", "words", "scale", "bias", "y")]
        batch = T.int64() if problem.batch is None else tirx.IntImm("int64", problem.batch)
        tensors = [
            T.match_buffer(handle, shape, dtype)
            for handle, (shape, dtype) in zip(
                handles,
                (
                    ((batch, inputs), problem.dtype),
                    ((blocks, problem.rows, 4), "uint32"),
                    ((outputs,), "float32"),
                    ((outputs,), "float32"),
                    ((batch, outputs), problem.dtype),
                ),
                strict=True,
            )
        ]
        _launch(problem, architecture, tensors, batch)
    return built.get()


def _launch(problem: GemmProblem, architecture: Architecture, tensors: Any, batch: Any) -> None:
    if architecture == "any":
        _launch_gemv(problem, _gemv_shape(problem, 8), tensors, batch)
    elif problem.batch is None:
        with T.If(batch <= FEW_ROWS):
            with T.Then():
                _launch_gemv(problem, _gemv_shape(problem, FEW_ROWS, cluster=8), tensors, batch)
            with T.Else():
                _launch_gemm(problem, gemm_shape(None, problem.rows), tensors, batch)
    elif problem.batch <= FEW_ROWS:
        cluster = 8 if problem.batch > 4 else 1
        _launch_gemv(problem, _gemv_shape(problem, problem.batch, cluster), tensors, batch)
    else:
        _launch_gemm(problem, gemm_shape(problem.batch, problem.rows), tensors, batch)


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


def _gemv_shape(problem: GemmProblem, lines: int, cluster: int = 1) -> GemvShape:
    blocks = -(-problem.inputs // _BLOCK_INPUTS)
    if cluster > 1 and blocks >= 2 * cluster:
        return GemvShape(row_warps=4, input_warps=2, cluster=cluster, lines=lines)
    most = 4 if lines > 4 else 16
    shares = next(share for share in (16, 8, 4, 2, 1) if share <= min(most, blocks))
    return GemvShape(row_warps=1, input_warps=shares, cluster=1, lines=lines)


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
    name = f"tiled_gemm_{_digest(problem, shape)}"
    with (
        T.launch_thread("blockIdx.x", tirx.min(tiles, shape.blocks * _multiprocessors())),
        T.launch_thread("threadIdx.x", shape.threads),
        T.attr(T.int32(0), "tirx.launch_bounds_min_blocks_per_sm", shape.blocks),
    ):
        shared = T.alloc_buffer((shape.shared_bytes,), "uint8", scope="shared.dyn")
        _call(
            name,
            gemm_source(name, shape, problem.dtype, problem.steps),
            *(T.address_of(x_map), T.address_of(y_map), words.data, scale.data, bias.data),
            *(shared.data, batch.astype("int32"), rows, copies, inputs),
        )


def _launch_gemv(problem: GemmProblem, shape: GemvShape, tensors: Any, batch: Any) -> None:
    x, words, scale, bias, y = tensors
    rows, copies, inputs = problem.rows, problem.copies, problem.inputs
    name = f"tiled_gemv_{_digest(problem, shape)}"
    groups = -(-rows // shape.rows)
    with ExitStack() as stack:
        for tag, extent in (
            ("blockIdx.x", groups * shape.cluster),
            ("blockIdx.y", tirx.floordiv(batch + shape.lines - 1, shape.lines)),
            ("threadIdx.x", shape.threads),
            *([("clusterCtaIdx.x", shape.cluster)] if shape.cluster > 1 else []),
        ):
            stack.enter_context(T.launch_thread(tag, extent))
        shared = T.alloc_buffer((shape.shared_bytes,), "uint8", scope="shared.dyn")
        _call(
            name,
            gemv_source(name, shape, problem.dtype, problem.steps),
            *(x.data, y.data, words.data, scale.data, bias.data),
            *(shared.data, batch.astype("int32"), rows, copies, inputs),
        )


def _call(name: str, source: str, *arguments: Any) -> None:
    T.evaluate(T.cuda.func_call(name, *arguments, source_code=source))


def _multiprocessors() -> Any:
    """How many blocks run at once, asked of the device when the function is called."""
    return T.call_packed("runtime.GetDeviceAttr", _DEVICE_CUDA, 0, _MULTIPROCESSORS)


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


def _digest(problem: GemmProblem, shape: Any) -> str:
    """Equal for equal kernels, so that layers share their code."""
    return sha256(repr((problem.dtype, problem.steps, shape)).encode()).hexdigest()[:12]
