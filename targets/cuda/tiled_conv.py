"""TIR functions for a convolution with a tiled binary weight: an implicit Gemm.

Patches of the images are gathered on their way to shared memory; they are stored nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder

from tbn_compile.targets.cuda.sources import ImagesLayout
from tbn_compile.targets.cuda.tiled_gemm import words_shape
from tbn_compile.targets.cuda.tiled_mma import MmaProblem, elements_per_vector, launch_mma
from tbn_compile.tile import Signs

_LARGEST = 2**24
_LARGEST_INDEX = 2**31


@dataclass(frozen=True)
class ConvProblem:
    """y[n, c·rows + r] = steps(scale · conv(x, ±1)[n, r] + bias) in one group.

    Attributes:
        dtype: of x and y, "float16", "bfloat16" or "float32"; sums are float32.
        batch: images, or None: known when the model runs.
        channels: of x.
        extents: spatial extents of x, one or two.
        results: spatial extents of y.
        kernel: spatial extents of the weight.
        strides: along each axis.
        dilations: along each axis.
        pads: zeros before each axis.
        rows: distinct rows of the weight.
        copies: how often they repeat; the outputs are `rows · copies`.
        steps: CUDA statements on the float `value` after scale and bias.
    """

    dtype: str
    batch: int | None
    channels: int
    extents: tuple[int, ...]
    results: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    rows: int
    copies: int
    steps: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """N."""
        return self.rows * self.copies

    @property
    def inputs(self) -> int:
        """K."""
        return self.channels * prod(self.kernel)

    @property
    def positions(self) -> int:
        """Positions in an image of y."""
        return prod(self.results)

    @property
    def served(self) -> bool:
        """Whether there is a kernel: one or two axes, and numbers of 32 bits."""
        small = (*self.extents, *self.results, *self.kernel)
        small += (*self.strides, *self.dilations, *self.pads)
        indices = (self.channels * prod(self.extents), (self.batch or 1) * self.positions)
        return (
            len(self.kernel) in (1, 2)
            and max(small) < _LARGEST
            and max(s * r for s, r in zip(self.strides, self.results, strict=True)) < _LARGEST
            and max(d * k for d, k in zip(self.dilations, self.kernel, strict=True)) < _LARGEST
            and max(*indices, self.outputs, self.inputs) < _LARGEST_INDEX
        )

    def mma(self) -> MmaProblem:
        """The Gemm that it is, a column for each position."""
        height, width = _planar(self.extents)
        _, row_positions = _planar(self.results)
        geometry = (
            *(self.channels, height, width, self.positions, row_positions),
            *_planar(self.kernel),
            *_planar(self.strides),
            *_planar(self.dilations),
            *(0, *self.pads)[-2:],
        )
        return MmaProblem(
            ImagesLayout(
                self.dtype,
                whole_taps=self.channels % 8 == 0,
                aligned_positions=self.positions % elements_per_vector(self.dtype) == 0,
            ),
            None if self.batch is None else self.batch * self.positions,
            self.rows,
            self.copies,
            self.inputs,
            self.steps,
            geometry,
        )


def conv_function(problem: ConvProblem) -> Any:
    """A TIR function `(x, words, scale, bias, y)` for the problem.

    x is T[n, channels, ...], words as from `pack_words` of `order_inputs`, scale and bias
    float32[N], y T[n, N, ...]; each starts at a multiple of 16 bytes. There may be as many images
    as give 2^31 positions of y.

    Args:
        problem: one that is `served`.
    """
    with IRBuilder() as built, builder.prim_func():
        handles = [builder.arg(name, T.handle()) for name in ("x", "words", "scale", "bias", "y")]
        batch = T.int64() if problem.batch is None else tirx.IntImm("int64", problem.batch)
        tensors = [
            T.match_buffer(handle, shape, dtype)
            for handle, (shape, dtype) in zip(
                handles,
                (
                    ((batch, problem.channels, *problem.extents), problem.dtype),
                    (words_shape(problem.rows, problem.inputs), "uint32"),
                    ((problem.outputs,), "float32"),
                    ((problem.outputs,), "float32"),
                    ((batch, problem.outputs, *problem.results), problem.dtype),
                ),
                strict=True,
            )
        ]
        launch_mma(problem.mma(), tensors, batch * problem.positions)
    return built.get()


def _planar(values: tuple[int, ...]) -> tuple[int, ...]:
    """Two extents of one or two: a line is a plane of one row."""
    return (1, *values)[-2:]


def order_inputs(signs: Signs, channels: int) -> Signs:
    """Columns of a convolution's weight as its kernel counts them, channels innermost.

    Args:
        signs: bool[rows, channels · places], as in the weight.
        channels: of x.
    """
    rows, inputs = signs.shape
    return signs.reshape(rows, channels, -1).swapaxes(1, 2).reshape(rows, inputs)
