"""Layers of integer activations: int32 sums, and a rescaling without floats or division.

A result is clamp(round(sum · m + b)), with m and b real numbers of each output: m from the scales
of input, weight and result, b from bias and zero point. In fixed point that is

    ((high word of (sum << shift) · multiplier) + offset) >> fraction

with multiplier = m · 2^(32 + fraction - shift) and offset = (b + 1/2) · 2^fraction, both int32. The
fraction is as long as 31 bits allow, so that a result differs from the exact one only where that
lies within about 2^-fraction of the middle of two integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import frexp, inf
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from tbn_compile.errors import ModelError
from tbn_compile.passes.relax.distinct_rows import DistinctRows, RunScale
from tbn_compile.passes.relax.kernels import apply_epilogue
from tbn_compile.passes.relax.tiled_layer import Quantization, Step, TiledLayer, constant_of
from tbn_compile.targets.mcu.compiler.kernels.arithmetic import Arithmetic, Finish, scale_at
from tbn_compile.targets.mcu.compiler.kernels.tiled_function import TiledFunction

_LEAST_FRACTION = 8
"""Fewer bits are too coarse; then the epilogue is computed in float32."""
_BITS = 29
"""What the largest result may take of an int32, so that no step overflows."""
Floats64 = npt.NDArray[np.float64]


def integer_function(layer: TiledLayer, weight: DistinctRows) -> TiledFunction:
    """A layer of integer activations as the builders of functions take it.

    Args:
        layer: one with `input_quantization`.
        weight: its distinct rows, with a scale for each output.

    Returns:
        The layer with the arithmetic for it. Where the epilogue is in fixed point, its bias is in
        the constants and no longer among the layer's steps.

    Raises:
        ModelError: if the layer has no integer activation or scales its inputs.
    """
    quantization, row_scale = layer.input_quantization, weight.row_scale
    if quantization is None or row_scale is None:
        raise ModelError("sums of integers need an integer activation and a scale for each output")
    scale = RunScale(row_scale.values * np.float32(quantization.scale), row_scale.run)
    fixed = _fixed_point(layer, scale, layer.weight.inputs * quantization.largest)
    constants, finish = (
        _float_epilogue(layer, scale) if fixed is None else (fixed.constants, fixed.finish)
    )
    arithmetic = Arithmetic("int16", "int32", "int32", quantization.zero_point, constants, finish)
    kept = layer if fixed is None else replace(layer, epilogue=())
    return TiledFunction(kept, weight, arithmetic)


@dataclass(frozen=True, eq=False)
class Rescaling:
    """From int32 sums to integers of the result's type; the module's page has the formula.

    Attributes:
        multiplier: int32, of each output or run of outputs.
        offset: int32[outputs].
        shift, fraction: in bits.
        bounds: the lowest and highest result.
        dtype: the result's type.
    """

    multiplier: RunScale
    offset: npt.NDArray[np.int32]
    shift: int
    fraction: int
    bounds: tuple[int, int]
    dtype: str

    @property
    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        """What `finish` reads."""
        return self.multiplier.values, self.offset

    def finish(
        self,
        value: Any,
        channel: Any,
        _place: Sequence[Any],
        constants: Sequence[Any],
        _operands: Sequence[Any],
    ) -> Any:
        """The result for a sum, see `Finish`."""
        multiplier, offset = constants
        factor = scale_at(self.multiplier, multiplier, channel)
        wide = (value * (1 << self.shift)).astype("int64") * factor.astype("int64")
        steps = ((wide >> 32).astype("int32") + offset[channel]) >> self.fraction
        low, high = self.bounds
        return tirx.max(tirx.min(steps, high), low).astype(self.dtype)


def rescaling(
    factor: RunScale, addend: Floats64, largest: int, bounds: tuple[int, int], dtype: str
) -> Rescaling | None:
    """The fixed-point form of sum · factor + addend.

    Args:
        factor: float64, of each output or run of outputs.
        addend: float64[outputs].
        largest: the largest magnitude of a sum.
        bounds: the lowest and highest result.
        dtype: of the result.

    Returns:
        None if the results are too large for the precision that is needed.
    """
    steepest = float(np.abs(factor.values).max())
    most = largest * steepest + float(np.abs(addend).max()) + 1
    fraction = _BITS - frexp(most)[1]
    shift = 31 - largest.bit_length()
    if not np.isfinite(most) or fraction < _LEAST_FRACTION:
        return None
    multiplier = np.rint(factor.values * 2.0 ** (32 + fraction - shift)).astype(np.int32)
    offset = np.rint((addend + 0.5) * 2.0**fraction).astype(np.int32)
    return Rescaling(RunScale(multiplier, factor.run), offset, shift, fraction, bounds, dtype)


def _fixed_point(layer: TiledLayer, scale: RunScale, largest: int) -> Rescaling | None:
    """The epilogue in fixed point; None if it is more than a bias and clamps, or gives floats."""
    output = layer.output_quantization
    bias, clamps = _split(layer.epilogue)
    if output is None or bias is None or any(step.kind != "clip" for step in clamps):
        return None
    addend = np.broadcast_to(bias, layer.weight.outputs) / output.scale + output.zero_point
    factor = RunScale(scale.values.astype(np.float64) / output.scale, scale.run)
    return rescaling(factor, addend, largest, _bounds(clamps, output), output.dtype)


def _split(epilogue: tuple[Step, ...]) -> tuple[Floats64 | None, tuple[Step, ...]]:
    """The constant bias that an epilogue begins with, or None if it is computed; and the rest."""
    if not epilogue or epilogue[0].kind != "bias":
        return np.zeros(1), epilogue
    bias = constant_of(epilogue[0].operand)
    return None if bias is None else bias.astype(np.float64), epilogue[1:]


def _bounds(clamps: Sequence[Step], output: Quantization) -> tuple[int, int]:
    """What clamps before rounding leave of the result's range."""
    low, high = -inf, inf
    for lower, upper in (step.bounds for step in clamps if step.bounds is not None):
        low, high = (min(max(each, lower), upper) for each in (low, high))
    edges = np.rint(np.array([low, high], np.float32) / np.float32(output.scale))
    lowest, highest = np.clip(edges + output.zero_point, *output.limits)
    return int(lowest), int(highest)


def _float_epilogue(
    layer: TiledLayer, scale: RunScale
) -> tuple[tuple[npt.NDArray[Any], ...], Finish]:
    """Scale and epilogue in float32: the constants and what follows a sum."""

    def finish(
        value: Any,
        channel: Any,
        place: Sequence[Any],
        constants: Sequence[Any],
        operands: Sequence[Any],
    ) -> Any:
        scaled = value.astype("float32") * scale_at(scale, constants[0], channel)
        return apply_epilogue(layer, scaled, channel, place, operands)

    return (scale.values,), finish
