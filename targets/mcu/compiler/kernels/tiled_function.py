"""The frame of a kernel: a layer, its arithmetic, and the TIR function under construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tbn_compile.passes.relax.tiled_layer import TiledLayer
from tbn_compile.targets.mcu.compiler.kernels.arithmetic import Arithmetic
from tbn_compile.targets.mcu.compiler.kernels.distinct_rows import DistinctRows
from tbn_compile.targets.mcu.compiler.kernels.products import BufferSums, Load, Product, grid
from tbn_compile.tile import ReusePlan

Arrays: TypeAlias = tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True, eq=False)
class TiledFunction:
    """A layer and the arithmetic that its function uses.

    Attributes:
        layer: the call.
        weight: its distinct rows.
        arithmetic: element types, scales and epilogue.
    """

    layer: TiledLayer
    weight: DistinctRows
    arithmetic: Arithmetic

    def sums_bytes(self, count: int) -> int:
        """Workspace for so many sums; they need none where they can grow in the result."""
        return 0 if self._sums_fit_result else count * np.dtype(self.arithmetic.sums).itemsize

    def allocate_sums(self, *extents: int) -> Any:
        """A buffer for sums, or None if they can grow in the result."""
        if self._sums_fit_result:
            return None
        return T.alloc_buffer(extents, self.arithmetic.sums)

    def allocate(self, product: Product) -> tuple[Any, Any]:
        """Tables and sums of a product, each None if it needs none."""
        tables = product.allocate(self.arithmetic.table)
        if product.is_single_pass:
            return tables, None
        return tables, self.allocate_sums(self.weight.plan.distinct_rows)

    @property
    def _sums_fit_result(self) -> bool:
        return str(self.layer.result_type().dtype) == self.arithmetic.sums

    def write(self, packed: Arrays, body: Callable[[Parameters], None]) -> tuple[Any, Arrays]:
        """The PrimFunc and its constants.

        Args:
            packed: the signs, as `body` reads them.
            body: emits what the function does.
        """
        column_scale = self.weight.column_scale
        constants = (
            packed,
            () if column_scale is None else (column_scale.values,),
            self.arithmetic.constants,
        )
        operands = [step.operand for step in self.layer.epilogue if step.operand is not None]
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True})
            x = _tensor("x", self.layer.x.ty)
            packed_bits, scales, read = [
                [T.arg("constant", T.buffer(array.shape, array.dtype.name)) for array in group]
                for group in constants
            ]
            added = [_tensor("operand", operand.ty) for operand in operands]
            y = _tensor("y", self.layer.result_type())
            body(Parameters(self, x, packed_bits, scales, read, added, y))
        return builder.get(), tuple(array for group in constants for array in group)


@dataclass(frozen=True, eq=False)
class Parameters:
    """The parameters of the function under construction.

    Attributes:
        function: what it computes.
        x: the activation.
        packed: the packed signs.
        column_scale: the scales of the inputs, if they have any.
        constants: what the arithmetic reads.
        operands: of the epilogue.
        y: the result.
    """

    function: TiledFunction
    x: Any
    packed: Sequence[Any]
    column_scale: Sequence[Any]
    constants: Sequence[Any]
    operands: Sequence[Any]
    y: Any

    def input(self, *place: Any) -> Any:
        """An element of the activation less its zero point, in the type of the sums."""
        arithmetic = self.function.arithmetic
        value = self.x[place].astype(arithmetic.sums)
        zero = arithmetic.zero_point
        return value - tirx.const(zero, arithmetic.sums) if zero else value


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of a Gemm, or of one group of a convolution.

    Attributes:
        parameters: of the function.
        group: which group.
        place: the result's indices for an output and, if there are any, a position.
    """

    parameters: Parameters
    group: Any
    place: Callable[..., Sequence[Any]]

    def add_up(
        self, product: Product, workspace: tuple[Any, Any], load: Load, first_pattern: Any
    ) -> None:
        """Add the inputs of each distinct row up and write the outputs.

        Args:
            product: how.
            workspace: what `TiledFunction.allocate` gave for it.
            load: the inputs.
            first_pattern: the pattern of the group's first row.
        """
        tables, place = workspace
        packed = self.parameters.packed
        if product.is_single_pass:
            product.emit(tables, packed, load, CompleteSums(self), first_pattern)
            return
        sums = self.sums(place)
        product.emit(tables, packed, load, sums, first_pattern)
        self.write_all(sums)

    def sums(self, workspace: Any) -> BufferSums:
        """The sums of the distinct rows: in the workspace, or where the result will be."""
        if workspace is not None:
            return BufferSums(workspace, lambda *place: place)
        first = self.group * self._plan.rows
        return BufferSums(
            self.parameters.y, lambda row, *position: self.place(first + row, *position)
        )

    def write_all(self, sums: BufferSums, positions: Sequence[int] = ()) -> None:
        """Write every output as a scaled copy of its distinct row's sum.

        Those that may hold the sums come last.

        Args:
            sums: of the distinct rows.
            positions: extents of the positions of each sum.
        """
        with T.serial(0, self._copies) as done:
            copy = self._copies - 1 - done
            rows = self._plan.distinct_rows
            if self._plan.rows % rows:
                rows = tirx.min(rows, self._plan.rows - copy * rows)
            with grid((rows, *positions)) as (row, *position):
                self._write(sums.load(row, *position), row, copy, position)

    def write_row(self, value: Any, row: Any) -> None:
        """Write the outputs that are scaled copies of one complete sum."""
        value = T.bind(value)
        with T.serial(0, self._copies) as copy, ExitStack() as condition:
            if self._plan.rows % self._plan.distinct_rows:
                inside = copy * self._plan.distinct_rows + row < self._plan.rows
                condition.enter_context(T.If(inside))
                condition.enter_context(T.Then())
            self._write(value, row, copy, ())

    def _write(self, value: Any, row: Any, copy: Any, position: Sequence[Any]) -> None:
        output = self.group * self._plan.rows + copy * self._plan.distinct_rows + row
        indices = list(self.place(output, *position))
        result = self.parameters.function.arithmetic.finish(
            value, output, indices, self.parameters.constants, self.parameters.operands
        )
        T.buffer_store(self.parameters.y, result, indices)

    @property
    def _plan(self) -> ReusePlan:
        return self.parameters.function.weight.plan

    @property
    def _copies(self) -> int:
        return -(-self._plan.rows // self._plan.distinct_rows)


@dataclass(frozen=True)
class CompleteSums:
    """Sums that are stored once and become outputs at once.

    Attributes:
        outputs: where they go.
    """

    outputs: Outputs

    @property
    def dtype(self) -> str:
        """Their element type."""
        return self.outputs.parameters.function.arithmetic.sums

    def load(self, row: Any) -> Any:
        """Nothing has been added up yet."""
        del row
        return tirx.const(0, self.dtype)

    def store(self, value: Any, row: Any) -> None:
        """Write the outputs."""
        self.outputs.write_row(value, row)

    def clear(self, rows: int) -> None:
        """Nothing to do."""


def extents_of(kind: Any) -> list[int]:
    """The static shape of a tensor type."""
    return [int(extent) for extent in kind.shape.values]


def bytes_of(kind: Any) -> int:
    """The bytes of a tensor of that type."""
    return prod(extents_of(kind)) * np.dtype(str(kind.dtype)).itemsize


def _tensor(name: str, kind: Any) -> Any:
    return T.arg(name, T.buffer(extents_of(kind), str(kind.dtype)))
