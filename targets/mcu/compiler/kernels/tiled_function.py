"""The frame of a kernel: a layer, its arithmetic, and the TIR function under construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tbn_compile.passes.relax.distinct_rows import DistinctRows
from tbn_compile.passes.relax.tiled_layer import TiledLayer
from tbn_compile.targets.mcu.compiler.kernels.arithmetic import Arithmetic, scale_at
from tbn_compile.targets.mcu.compiler.kernels.products import BufferSums, Load, Product, grid
from tbn_compile.tile import ReusePlan

Arrays: TypeAlias = tuple[npt.NDArray[Any], ...]
Store: TypeAlias = Callable[[Any, Sequence[Any]], None]
"""(value, place) → stored there."""

_MONOTONIC = {"bias", "clip"}
"""Steps of an epilogue that keep the order of their results."""


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
        fits = str(self.layer.result_type().dtype) == self.arithmetic.sums
        return fits and not self.layer.pool

    @property
    def pools_sums(self) -> bool:
        """Whether the greatest output of a window comes from its greatest or its least sum."""
        steps = {step.kind for step in self.layer.epilogue}
        return bool(self.layer.pool) and self.weight.row_scale is not None and steps <= _MONOTONIC

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

    def falls(self, output: Any) -> Any:
        """Whether an output falls as its sum rises."""
        scale = self.function.weight.row_scale
        if scale is None or (scale.values >= 0).all():
            return tirx.const(False, "bool")
        return scale_at(scale, self.constants[0], output) < 0

    def put(self, value: Any, place: Sequence[Any]) -> None:
        """Store an element of the result."""
        T.buffer_store(self.y, value, place)

    def store(self, value: Any, place: Sequence[Any]) -> None:
        """Store what the epilogue gives at a place, if it is pooled the greatest of its window.

        Positions must come in ascending order: the first of a window begins it.
        """
        pool = self.function.layer.pool
        if not pool:
            self.put(value, place)
            return
        position = list(zip(place[2:], pool, strict=True))
        target = [*place[:2], *(at // size for at, size in position)]
        begins = tirx.all(*(at % size == 0 for at, size in position))
        extents = extents_of(self.function.layer.result_type())[2:]
        inside = tirx.all(*(at < e * s for (at, s), e in zip(position, extents, strict=True)))
        with T.If(inside), T.Then():
            greatest = T.alloc_buffer((1,), str(self.y.ty.dtype), scope="local")
            T.buffer_store(greatest, value, [0])
            with T.If(tirx.Not(begins)), T.Then():
                T.buffer_store(greatest, tirx.Max(self.y[tuple(target)], greatest[0]), [0])
            T.buffer_store(self.y, greatest[0], target)


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
        if positions and self.parameters.function.pools_sums:
            self._write_greatest(sums)
            return
        with T.serial(0, self._copies) as done:
            copy = self._copies - 1 - done
            rows = self._plan.distinct_rows
            if self._plan.rows % rows:
                rows = tirx.min(rows, self._plan.rows - copy * rows)
            with grid((rows, *positions)) as (row, *position):
                same = partial(_same, sums.load(row, *position))
                self._write(same, row, copy, position, self.parameters.store)

    def _write_greatest(self, sums: BufferSums) -> None:
        """Write every output from the greatest sum of its window; the least if its scale falls."""
        layer = self.parameters.function.layer
        pooled = extents_of(layer.result_type())[2:]
        with grid((self._plan.distinct_rows, *pooled)) as (row, *position):
            extremes = T.alloc_buffer((2,), sums.dtype, scope="local")
            for offsets in np.ndindex(*layer.pool):
                window = zip(position, layer.pool, offsets, strict=True)
                value = T.bind(sums.load(row, *(at * size + ahead for at, size, ahead in window)))
                is_first = not any(offsets)
                greatest, least = (
                    value if is_first else tirx.Select(beyond, value, extremes[index])
                    for index, beyond in enumerate((extremes[0] < value, value < extremes[1]))
                )
                T.buffer_store(extremes, greatest, [0])
                T.buffer_store(extremes, least, [1])
            falls = self.parameters.falls
            self._write_copies(
                lambda output: tirx.Select(falls(output), extremes[1], extremes[0]),
                row,
                position,
                self.parameters.put,
            )

    def write_row(self, value: Any, row: Any) -> None:
        """Write the outputs that are scaled copies of one complete sum."""
        self._write_copies(partial(_same, T.bind(value)), row, (), self.parameters.store)

    def _write_copies(
        self, value: Callable[[Any], Any], row: Any, position: Sequence[Any], store: Store
    ) -> None:
        with T.serial(0, self._copies) as copy, ExitStack() as condition:
            if self._plan.rows % self._plan.distinct_rows:
                inside = copy * self._plan.distinct_rows + row < self._plan.rows
                condition.enter_context(T.If(inside))
                condition.enter_context(T.Then())
            self._write(value, row, copy, position, store)

    def _write(
        self,
        value: Callable[[Any], Any],
        row: Any,
        copy: Any,
        position: Sequence[Any],
        store: Store,
    ) -> None:
        output = self.group * self._plan.rows + copy * self._plan.distinct_rows + row
        place = list(self.place(output, *position))
        result = self.parameters.function.arithmetic.finish(
            value(output), output, place, self.parameters.constants, self.parameters.operands
        )
        store(result, place)

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


def _same(value: Any, _output: Any) -> Any:
    """One value for every output."""
    return value


def extents_of(kind: Any) -> list[int]:
    """The static shape of a tensor type."""
    return [int(extent) for extent in kind.shape.values]


def bytes_of(kind: Any) -> int:
    """The bytes of a tensor of that type."""
    return prod(extents_of(kind)) * np.dtype(str(kind.dtype)).itemsize


def _tensor(name: str, kind: Any) -> Any:
    return T.arg(name, T.buffer(extents_of(kind), str(kind.dtype)))
