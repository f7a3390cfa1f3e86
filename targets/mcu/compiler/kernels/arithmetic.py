"""What a sum becomes: element types, scales and epilogue of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt
from tvm import tirx

from tbn_compile.passes.relax.distinct_rows import DistinctRows, RunScale
from tbn_compile.passes.relax.kernels import apply_epilogue
from tbn_compile.passes.relax.tiled_layer import TiledLayer

Finish: TypeAlias = Callable[[Any, Any, Sequence[Any], Sequence[Any], Sequence[Any]], Any]
"""(sum, output channel, place in the result, constants, operands) → the result's element."""


@dataclass(frozen=True, eq=False)
class Arithmetic:
    """Element types and the steps after the sums.

    Attributes:
        inputs: element type of copied inputs, less the zero point.
        table: element type of partial sums of four inputs.
        sums: element type of the sums.
        zero_point: what the activation has for zero.
        constants: arrays that `finish` reads; where rows have scales, theirs come first.
        finish: scale and epilogue.
    """

    inputs: str
    table: str
    sums: str
    zero_point: int
    constants: tuple[npt.NDArray[Any], ...]
    finish: Finish


def float_arithmetic(layer: TiledLayer, weight: DistinctRows) -> Arithmetic:
    """float32 throughout: times the scale, then the epilogue's steps."""
    scale = weight.row_scale

    def finish(
        value: Any,
        channel: Any,
        place: Sequence[Any],
        constants: Sequence[Any],
        operands: Sequence[Any],
    ) -> Any:
        if scale is not None:
            value = value * scale_at(scale, constants[0], channel)
        return apply_epilogue(layer, value, channel, place, operands)

    constants = () if scale is None else (scale.values,)
    return Arithmetic("float32", "float32", "float32", 0, constants, finish)


def scale_at(scale: RunScale, values: Any, number: Any) -> Any:
    """The scale of an output or input, from the buffer of its values."""
    if len(scale.values) == 1:
        return values[0]
    if scale.run == 1:
        return values[number]
    # Unsigned, because TVM 0.27 turns (15 - i) // 4 of signed numbers into another value.
    run = tirx.truncdiv(number.astype("uint32"), tirx.const(scale.run, "uint32"))
    return values[run.astype("int32")]
