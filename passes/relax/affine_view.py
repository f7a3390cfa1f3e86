"""Where the elements of a tensor lie, through operators that move none: a view of their operand.

A kernel that reads a view needs no copy of a reshaped, transposed or sliced tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import mul
from typing import Any, TypeAlias

import numpy as np
import tvm
from tvm import relax, tirx

from tbn_compile.passes.relax.epilogue_fusion import operator_name
from tbn_compile.passes.relax.tiled_layer import constant_of

Extent: TypeAlias = Any
"""An `int`, or an int64 expression of what is known when the model runs."""
ValueOf: TypeAlias = Callable[[Any], Any]
"""An expression to what it is bound to, if it is a variable that is bound, or else to itself."""


@dataclass(frozen=True)
class Run:
    """Places at equal distances.

    Attributes:
        extent: how many.
        stride: from one to the next, in elements of the root.
    """

    extent: Extent
    stride: Extent


Axis: TypeAlias = tuple[Run, ...]
"""The runs of an axis, outermost first, as digits of its index. None stand for an extent of 1."""


@dataclass(frozen=True)
class AffineView:
    """Elements of a root tensor in another order: offset + Σ digit · stride.

    Attributes:
        root: the expression of the tensor that is stored, in row-major order.
        offset: of the first element.
        axes: one for each axis of the view.
    """

    root: Any
    offset: Extent
    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, root: Any) -> AffineView:
        """The whole of a tensor that has a shape, see `has_shape`."""
        axes: list[Axis] = []
        stride: Extent = 1
        for extent in map(_plain, reversed(root.ty.shape.values)):
            axes.insert(0, _joined([Run(extent, stride)]))
            stride = _plain(stride * extent)
        return cls(root, 0, tuple(axes))

    @property
    def shape(self) -> list[Extent]:
        """The extents of its axes."""
        return [product(run.extent for run in axis) for axis in self.axes]

    def permuted(self, order: Sequence[int]) -> AffineView:
        """Axis i is what was axis `order[i]`."""
        return replace(self, axes=tuple(self.axes[axis] for axis in order))

    def sliced(self, axis: int, begin: int, step: int, extent: int) -> AffineView | None:
        """Some indices of an axis, or None: they are not all inside, or no run."""
        whole, stride, last = self.shape[axis], self.stride(axis), begin + (extent - 1) * step
        if stride is None or not isinstance(whole, int) or not isinstance(extent, int):
            return None
        if not (0 <= begin < whole and 0 <= last < whole):
            return None
        axes = list(self.axes)
        axes[axis] = _joined([Run(extent, _plain(stride * step))])
        return replace(self, offset=_plain(self.offset + begin * stride), axes=tuple(axes))

    def reshaped(self, shape: Sequence[Extent]) -> AffineView | None:
        """The same elements in row-major order, or None: they are no such view."""
        digits = [run for axis in self.axes for run in axis]
        axes: list[Axis] = []
        for extent in map(_plain, reversed(shape)):
            axis = _take_digits(digits, extent)
            if axis is None:
                return None
            axes.insert(0, axis)
        return None if digits else replace(self, axes=tuple(axes))

    def broadcast(self, shape: Sequence[Extent]) -> AffineView | None:
        """Axes of extent 1 repeated, and axes added before the first; None if that does not fit."""
        added = len(shape) - len(self.axes)
        if added < 0:
            return None
        axes: list[Axis] = []
        for extent, axis in zip(map(_plain, shape), [()] * added + list(self.axes), strict=True):
            if not axis:
                axes.append(_joined([Run(extent, 0)]))
            elif _equal(extent, product(run.extent for run in axis)):
                axes.append(axis)
            else:
                return None
        return replace(self, axes=tuple(axes))

    def mapped(self, change: Callable[[Extent], Extent]) -> AffineView:
        """The same with every number replaced."""
        axes = tuple(
            tuple(Run(change(run.extent), change(run.stride)) for run in axis) for axis in self.axes
        )
        return replace(self, offset=change(self.offset), axes=axes)

    def numbers(self) -> list[Extent]:
        """The offset, and every extent and stride."""
        runs = [run for axis in self.axes for run in axis]
        return [self.offset, *(run.extent for run in runs), *(run.stride for run in runs)]

    def stride(self, axis: int) -> Extent | None:
        """From one index of an axis to the next; None if that differs."""
        runs = self.axes[axis]
        return None if len(runs) > 1 else runs[0].stride if runs else 0

    def place(self, index: Any, axes: Sequence[int]) -> Any:
        """Where a row-major index into some of the axes lies, in elements of the root.

        Args:
            index: an int64 expression, within their extents.
            axes: which; the others have index 0.
        """
        place = int64(self.offset)
        runs = [run for axis in axes for run in self.axes[axis]]
        for run in reversed(runs[1:]):
            place = place + tirx.floormod(index, run.extent) * run.stride
            index = tirx.floordiv(index, run.extent)
        return place + index * runs[0].stride if runs else place

    def has_aligned_rows(self, elements: int) -> bool:
        """Whether each index into all axes but the last leads to a multiple of so many elements."""
        runs = [run for axis in self.axes[:-1] for run in axis]
        return all(
            _divides(elements, step) for step in (self.offset, *(run.stride for run in runs))
        )


def has_shape(expression: Any) -> bool:
    """Whether an expression is a tensor whose extents are known, if only in symbols."""
    kind = expression.ty
    return isinstance(kind, relax.TensorType) and isinstance(kind.shape, relax.ShapeExpr)


def view_of(expression: Any, value_of: ValueOf) -> AffineView:
    """The view that an expression is of the tensor farthest back.

    Args:
        expression: a tensor that has a shape, see `has_shape`.
        value_of: see `ValueOf`.
    """
    moves = []
    operand = _operand(expression, value_of)
    while operand is not None:
        moves.append(expression)
        expression = operand
        operand = _operand(expression, value_of)
    view = AffineView.of(expression)
    for move in reversed(moves):
        view = _moved(move, view, value_of) or AffineView.of(move)
    return view


def known_scalar(expression: Any, value_of: ValueOf) -> Any:
    """The number that an expression of constants with one element stands for, or None.

    Args:
        expression: a tensor.
        value_of: see `ValueOf`.
    """
    value = value_of(expression)
    constant = constant_of(value)
    if constant is not None:
        return constant.reshape(())[()] if constant.size == 1 else None
    name = operator_name(value)
    if name == "relax.where":
        condition = known_scalar(value.args[0], value_of)
        branch = 1 if condition else 2
        return None if condition is None else known_scalar(value.args[branch], value_of)
    if name not in _ARITHMETIC:
        return None
    operands = [known_scalar(argument, value_of) for argument in value.args]
    if any(operand is None for operand in operands):
        return None
    with np.errstate(all="ignore"):
        return np.asarray(_ARITHMETIC[name](*operands)).astype(_numpy_type(value))[()]


def int64(extent: Extent) -> Any:
    """An extent as an expression."""
    return tirx.IntImm("int64", extent) if isinstance(extent, int) else extent


def is_one(extent: Extent) -> bool:
    """Whether it is known to be 1."""
    return isinstance(extent, int) and extent == 1


def product(extents: Iterable[Extent]) -> Extent:
    """1, if there are none."""
    return _plain(reduce(mul, extents, 1))


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "relax.astype": np.asarray,
    "relax.divide": np.divide,
    "relax.less": np.less,
    "relax.multiply": np.multiply,
    "relax.sqrt": np.sqrt,
}
_MOVES = (
    *("relax.broadcast_to", "relax.expand_dims", "relax.flatten", "relax.permute_dims"),
    *("relax.reshape", "relax.squeeze", "relax.strided_slice", "relax.take"),
)


def _operand(expression: Any, value_of: ValueOf) -> Any:
    """The tensor whose elements an expression moves, or None: it does something else."""
    value = value_of(expression)
    is_part = isinstance(value, relax.TupleGetItem)
    call = value_of(value.tuple_value) if is_part else value
    known = ("relax.split",) if is_part else _MOVES
    if operator_name(call) not in known or not has_shape(expression):
        return None
    return call.args[0] if has_shape(call.args[0]) else None


def _moved(expression: Any, source: AffineView, value_of: ValueOf) -> AffineView | None:
    value, shape = value_of(expression), expression.ty.shape.values
    if isinstance(value, relax.TupleGetItem):
        attributes = value_of(value.tuple_value).attrs
        return _split(source, attributes, int(value.index), shape)
    name = operator_name(value)
    if name == "relax.permute_dims":
        axes = value.attrs.axes or reversed(range(len(shape)))
        return source.permuted([int(axis) % len(shape) for axis in axes])
    if name == "relax.broadcast_to":
        return source.broadcast(shape)
    if name == "relax.strided_slice":
        return _strided_slice(source, value, shape)
    if name == "relax.take":
        return _take(source, value, shape, known_scalar(value.args[1], value_of))
    return source.reshaped(shape)


def _split(
    source: AffineView, attributes: Any, index: int, shape: Sequence[Any]
) -> AffineView | None:
    axis, sections = int(attributes.axis) % len(shape), attributes.indices_or_sections
    whole = source.shape[axis]
    if not isinstance(whole, int):
        return None
    if isinstance(sections, tirx.IntImm):
        begin = index * -(-whole // int(sections))
    else:
        begin = int([0, *sections][index])
    return source.sliced(axis, begin, 1, _plain(shape[axis]))


def _strided_slice(source: AffineView, call: Any, shape: Sequence[Any]) -> AffineView | None:
    parts = [getattr(argument, "fields", [None]) for argument in call.args[1:]]
    if not all(isinstance(number, tirx.IntImm) for part in parts for number in part):
        return None
    axes, begins, _, *rest = [[int(number) for number in part] for part in parts]
    view: AffineView | None = source
    for place, axis in enumerate(axes):
        whole = source.shape[axis]
        if view is None or not isinstance(whole, int):
            return None
        begin = begins[place] + whole if begins[place] < 0 else begins[place]
        step = rest[0][place] if rest else 1
        clamped = min(max(begin, 0), whole - 1)
        view = view.sliced(axis % len(shape), clamped, step, _plain(shape[axis]))
    return view


def _take(source: AffineView, call: Any, shape: Sequence[Any], index: Any) -> AffineView | None:
    if index is None or call.attrs.axis is None:
        return None
    axis = int(call.attrs.axis) % len(source.axes)
    whole = source.shape[axis]
    if not isinstance(whole, int):
        return None
    one = source.sliced(axis, int(index) + whole if index < 0 else int(index), 1, 1)
    return None if one is None else one.reshaped(shape)


def _take_digits(digits: list[Run], extent: Extent) -> Axis | None:
    """The innermost runs whose extents have a product, taken off; None if there are none such."""
    runs: list[Run] = []
    while not is_one(extent):
        if not digits:
            return None
        run = digits.pop()
        if _divides(run.extent, extent):
            runs.insert(0, run)
            extent = _quotient(extent, run.extent)
        elif _divides(extent, run.extent):
            runs.insert(0, Run(extent, run.stride))
            digits.append(Run(_quotient(run.extent, extent), _plain(run.stride * extent)))
            extent = 1
        elif digits and len(joined := _joined([digits[-1], run])) == 1:
            digits[-1] = joined[0]
        else:
            return None
    return _joined(runs)


def _joined(runs: Iterable[Run]) -> Axis:
    """The same places in as few runs as there can be."""
    joined: list[Run] = []
    for run in runs:
        if is_one(run.extent):
            continue
        if joined and _equal(joined[-1].stride, run.extent * run.stride):
            joined[-1] = Run(_plain(joined[-1].extent * run.extent), run.stride)
        else:
            joined.append(run)
    return tuple(joined)


def _plain(extent: Extent) -> Extent:
    """An `int` where that is known."""
    if isinstance(extent, int):
        return extent
    simple = tvm.sym.Analyzer().simplify(extent)
    return int(simple) if isinstance(simple, tirx.IntImm) else simple


def _equal(one: Extent, other: Extent) -> bool:
    difference = _plain(one - other)
    return isinstance(difference, int) and difference == 0


def _divides(divisor: Extent, extent: Extent) -> bool:
    if isinstance(divisor, int) and divisor == 0:
        return False
    if isinstance(divisor, int) and isinstance(extent, int):
        return extent % divisor == 0
    return _equal(tirx.floormod(int64(extent), int64(divisor)), 0)


def _quotient(extent: Extent, divisor: Extent) -> Extent:
    if isinstance(divisor, int) and isinstance(extent, int):
        return extent // divisor
    return _plain(tirx.floordiv(int64(extent), int64(divisor)))


def _numpy_type(expression: Any) -> Any:
    import ml_dtypes  # noqa: PLC0415

    name = str(expression.ty.dtype)
    return np.dtype(getattr(ml_dtypes, name, name))
