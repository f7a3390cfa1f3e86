"""The function under construction: its parameters, and what it stores."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tbn_compile.passes.relax.distinct_rows import DistinctRows, RunScale
from tbn_compile.passes.relax.kernels import apply_epilogue
from tbn_compile.passes.relax.tiled_layer import TiledLayer
from tbn_compile.targets.llvm.kernels.extents import own_extents
from tbn_compile.targets.llvm.kernels.mixing import Mixture


@dataclass(frozen=True, eq=False)
class Kernel:
    """A layer's product and epilogue.

    Attributes:
        function: takes the activation, the constants, the operands of the epilogue, the result.
        constants: the packed signs, and what else `Frame.packed` holds.
    """

    function: Any
    constants: tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True, eq=False)
class Frame:
    """A function under construction.

    Attributes:
        layer: the call that it computes.
        weight: its distinct rows.
        x: the activation.
        packed: the packed signs; then rows and factors of a mixture, or the scales of the outputs
            if they have any.
        operands: of the epilogue.
        y: the result.
    """

    layer: TiledLayer
    weight: DistinctRows
    x: Any
    packed: Sequence[Any]
    operands: Sequence[Any]
    y: Any

    @property
    def mixed(self) -> bool:
        """Whether outputs are mixed from several distinct rows."""
        return len(self.packed) == 3

    @property
    def copies(self) -> int:
        """Outputs that share a distinct row; the last one may exist for some rows only."""
        return -(-self.weight.plan.rows // self.weight.plan.distinct_rows)

    def mix(self, output: Any, sum_of: Callable[[Any], Any]) -> Any:
        """The combination of distinct rows' sums that an output is."""
        _, rows, factors = self.packed
        total: Any = tirx.const(0.0, "float32")
        for term in range(int(rows.ty.shape[1])):
            factor, value = factors[output, term], sum_of(rows[output, term])
            # Not 0 · infinity.
            total = total + tirx.Select(factor != 0, factor * value, tirx.const(0.0, "float32"))
        return total

    def with_axes(self, count: int) -> Frame:
        """The same with so many spatial axes: the first ones stay, the others count as one."""

        def view(buffer: Any) -> Any:
            first, rest = buffer.ty.shape[: count + 1], buffer.ty.shape[count + 1 :]
            if len(rest) < 2:
                return buffer
            shape = [*first, reduce(operator.mul, rest)]
            return T.decl_buffer(shape, str(buffer.ty.dtype), data=buffer.data)

        return replace(
            self, x=view(self.x), y=view(self.y), operands=list(map(view, self.operands))
        )

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
        if len(self.packed) == 2:
            scale = self.packed[1]
            total = total * scale[output if int(scale.ty.shape[0]) > 1 else 0]
        value = apply_epilogue(self.layer, total, output, at, self.operands)
        with ExitStack() as condition:
            if plan.rows % plan.distinct_rows:
                condition.enter_context(T.If(within < plan.rows))
                condition.enter_context(T.Then())
            T.buffer_store(self.y, value, at)


def build_kernel(
    layer: TiledLayer,
    weight: DistinctRows,
    x: tuple[Sequence[Any], str],
    signs: npt.NDArray[np.uint32],
    mixture: Mixture | None,
    emit: Callable[[Frame], None],
) -> Kernel:
    """A kernel with the parameters that all have.

    Args:
        layer: the call.
        weight: its distinct rows.
        x: the extents of the activation, integers or symbolic, and its element type. Residuals have
            the shape of the result for that.
        signs: packed.
        mixture: how the outputs are mixed from the distinct rows; None: each is a copy of one.
        emit: writes the body.
    """
    scale = _output_scale(weight.row_scale, layer.weight.outputs)
    constants = [signs, *([] if scale is None else [scale])]
    if mixture is not None:
        constants = [signs, mixture.rows, mixture.factors]
    operands = [step for step in layer.epilogue if step.operand is not None]
    extents, dtype = x
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        inputs = T.arg("x", T.buffer(own_extents(extents), dtype))
        packed = [T.arg("constant", T.buffer(each.shape, each.dtype.name)) for each in constants]
        shape = _result_shape(layer, list(inputs.ty.shape))
        added = [
            T.arg("operand", T.buffer(needed, str(step.operand.ty.dtype)))
            for step in operands
            for needed in [shape if step.kind == "residual" else shape[1:2]]
        ]
        y = T.arg("y", T.buffer(shape, layer.element_type))
        emit(Frame(layer, weight, inputs, packed, added, y))
    return Kernel(builder.get(), tuple(constants))


def _result_shape(layer: TiledLayer, x: Sequence[Any]) -> list[Any]:
    if layer.window is None:
        return [x[0], layer.weight.outputs]
    places = layer.window.place(list(x[2:]), layer.weight.shape[2:])
    return [x[0], layer.weight.outputs, *(extent for _, extent in places)]


def _output_scale(scale: RunScale | None, outputs: int) -> npt.NDArray[np.float32] | None:
    """float32[outputs], or one for all."""
    if scale is None or len(scale.values) == 1:
        return None if scale is None else scale.values
    return np.repeat(scale.values, scale.run)[:outputs]
