"""Kernels of the tiled layers for small cores."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import Any

from tbn_compile.errors import ModelError
from tbn_compile.passes.relax.distinct_rows import distinct_rows
from tbn_compile.passes.relax.tiled_layer import TiledLayer, constant_of
from tbn_compile.targets.mcu.compiler.kernels.arithmetic import float_arithmetic
from tbn_compile.targets.mcu.compiler.kernels.candidates import Candidate, candidates, portable
from tbn_compile.targets.mcu.compiler.kernels.cost_model import Costs
from tbn_compile.targets.mcu.compiler.kernels.integer import integer_function
from tbn_compile.targets.mcu.compiler.kernels.tiled_function import (
    Arrays,
    TiledFunction,
    bytes_of,
    extents_of,
)
from tbn_compile.targets.mcu.cores import Core
from tbn_compile.targets.mcu.program import Optimization

_WORKSPACE = {"ram": (192, 1 / 128, 0), "balanced": (768, 1 / 16, 1), "time": (inf, inf, 1)}
"""What kernels may use for speed, beyond the least: bytes; or more, if it is a smaller share of
their tensors, or of what pooling at once saves."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """A TIR function that computes a tiled layer.

    Attributes:
        function: its parameters are the activation, `constants`, the operands of the epilogue and
            the result.
        constants: what stands for the tile and the scale in the call.
        operands: Relax expressions of the steps that are left of the epilogue.
        name: hint for the C function.
        description: one line for reports.
        instructions: an estimate for one call.
    """

    function: Any
    constants: Arrays
    operands: tuple[Any, ...]
    name: str
    description: str
    instructions: int


def tiled_kernel(layer: TiledLayer, optimization: Optimization, core: Core) -> Kernel:
    """The kernel for a layer that needs the fewest instructions within the allowed workspace.

    Args:
        layer: the call.
        optimization: what kernels spend.
        core: what it will run on.

    Raises:
        ModelError: if the tile or the scale is no constant.
    """
    tile, scale = constant_of(layer.tile), constant_of(layer.scale)
    if tile is None or scale is None:
        raise ModelError("a tile or its scale is computed by the model; it must be a constant")
    weight = distinct_rows(layer, tile)
    if weight is None:
        return _built(portable(layer, (tile, scale)), layer)
    if layer.input_quantization:
        return choose_kernel(integer_function(layer, weight), optimization, Costs.of_integers(core))
    function = TiledFunction(layer, weight, float_arithmetic(layer, weight))
    return choose_kernel(function, optimization, Costs.of(core))


def choose_kernel(function: TiledFunction, optimization: Optimization, costs: Costs) -> Kernel:
    """The kernel that needs the fewest instructions within the allowed workspace.

    Args:
        function: the layer.
        optimization: what kernels spend.
        costs: of the arithmetic on the core.
    """
    every = list(candidates(function, costs))
    floor, share, spent = _WORKSPACE[optimization]
    layer = function.layer
    tensors = bytes_of(layer.x.ty) + bytes_of(layer.result_type())
    least = min(candidate.workspace_bytes for candidate in every)
    limit = least + max(floor, share * tensors, spent * _saved_bytes(layer))
    allowed = [candidate for candidate in every if candidate.workspace_bytes <= limit]
    return _built(min(allowed, key=lambda c: c.instructions), function.layer)


def _saved_bytes(layer: TiledLayer) -> int:
    """Bytes of what the epilogue gives that need no room, because it is pooled at once."""
    result = layer.result_type()
    itemsize = bytes_of(result) // prod(extents_of(result))
    return prod(int(extent) for extent in layer.epilogue_shape()) * itemsize - bytes_of(result)


def _built(candidate: Candidate, layer: TiledLayer) -> Kernel:
    function, constants = candidate.build()
    plan = layer.plan
    operands = tuple(step.operand for step in layer.epilogue if step.operand is not None)
    description = (
        f"{candidate.description}; {plan.distinct_rows} of {plan.rows} rows, "
        f"{plan.distinct_columns} of {plan.columns} columns"
    )
    return Kernel(
        function, constants, operands, candidate.name, description, candidate.instructions
    )
