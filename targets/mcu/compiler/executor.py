"""The ahead-of-time executor: which C functions run in what order, and where each tensor lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tbn_compile.errors import ModelError, clean
from tbn_compile.targets.mcu.compiler.c_source import CFunction
from tbn_compile.targets.mcu.compiler.lowering import VIEWS
from tbn_compile.targets.mcu.compiler.memory_plan import (
    Lifetime,
    MemoryPlan,
    live_bytes,
    plan_memory,
)

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        kind: "input" and "output" of the caller, "constant", or "workspace".
        index: which one of its kind.
    """

    kind: str
    index: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value that steps read or write; a view is the tensor that it shows.

    Attributes:
        dtype: element type, as numpy names it.
        nbytes: of its elements.
        place: where the caller or the constants hold it; None where it is the plan's to choose.
    """

    dtype: str
    nbytes: int
    place: Place | None = None


@dataclass(frozen=True)
class Step:
    """A call of a function, or, if it has no name, a copy from its argument to its result.

    Attributes:
        function: its name in the module, or None.
        arguments: what it reads.
        results: what it writes.
    """

    function: str | None
    arguments: tuple[Tensor, ...]
    results: tuple[Tensor, ...]


@dataclass(frozen=True)
class Steps:
    """The program before its memory is planned.

    Attributes:
        steps: in the order of execution.
        constants: arrays that arguments refer to, no two equal.
    """

    steps: tuple[Step, ...]
    constants: tuple[Array, ...]

    @property
    def result_counts(self) -> dict[str, int]:
        """How many results each function has."""
        return {step.function: len(step.results) for step in self.steps if step.function}


@dataclass(frozen=True)
class PlacedStep:
    """A step with a place for every pointer that its function takes.

    Attributes:
        function: the C function, or None for a copy.
        places: of its arguments, results and parts of the workspace, in order; those in the
            workspace by their offset in bytes.
        nbytes: of what a copy moves.
        workspace_bytes: what the function takes for itself.
        live_bytes: of the workspace that is in use.
    """

    function: CFunction | None
    places: tuple[Place, ...]
    nbytes: int
    workspace_bytes: int
    live_bytes: int


@dataclass(frozen=True)
class Executable:
    """Steps in memory.

    Attributes:
        steps: in the order of execution.
        workspace_bytes: of the one static workspace.
        alignment: of the workspace, in bytes.
    """

    steps: tuple[PlacedStep, ...]
    workspace_bytes: int
    alignment: int


def read_steps(module: Any) -> Steps:
    """The calls in a lowered module's `main`, in order.

    Raises:
        ModelError: if it does anything but call TIR functions and take views.
    """
    reader = _Reader(module["main"])
    return Steps(tuple(reader.steps()), tuple(reader.constants))


def place_steps(program: Steps, functions: Mapping[str, CFunction]) -> Executable:
    """Plan the workspace: tensors share it unless they are needed at one time.

    Args:
        program: what `read_steps` gave.
        functions: C functions by their name in the module.
    """
    lifetimes: list[Lifetime] = []
    tensors: dict[Tensor, int] = {}
    scratch: list[list[int]] = []
    last = {tensor: i for i, step in enumerate(program.steps) for tensor in _tensors(step)}
    for index, step in enumerate(program.steps):
        for tensor in step.results:
            if tensor.place is None and tensor not in tensors:
                tensors[tensor] = len(lifetimes)
                lifetimes.append(Lifetime(tensor.nbytes, index, last[tensor]))
        scratch.append([])
        for part in functions[step.function].workspace if step.function else ():
            scratch[-1].append(len(lifetimes))
            lifetimes.append(Lifetime(part.nbytes, index, index))
    alignment = _alignment(program.steps, functions)
    plan = plan_memory(lifetimes, alignment)
    placed = [
        _place_step(index, step, functions, lifetimes, plan, tensors, scratch[index])
        for index, step in enumerate(program.steps)
    ]
    return Executable(tuple(placed), plan.nbytes, alignment)


def _place_step(
    index: int,
    step: Step,
    functions: Mapping[str, CFunction],
    lifetimes: Sequence[Lifetime],
    plan: MemoryPlan,
    tensors: Mapping[Tensor, int],
    scratch: Sequence[int],
) -> PlacedStep:
    places = [
        tensor.place or Place("workspace", plan.offsets[tensors[tensor]])
        for tensor in _tensors(step)
    ]
    places += [Place("workspace", plan.offsets[part]) for part in scratch]
    return PlacedStep(
        function=functions[step.function] if step.function else None,
        places=tuple(places),
        nbytes=step.results[0].nbytes,
        workspace_bytes=sum(lifetimes[part].nbytes for part in scratch),
        live_bytes=live_bytes(lifetimes, index),
    )


def _tensors(step: Step) -> tuple[Tensor, ...]:
    return step.arguments + step.results


def _alignment(steps: Sequence[Step], functions: Mapping[str, CFunction]) -> int:
    dtypes = [tensor.dtype for step in steps for tensor in _tensors(step)]
    dtypes += [part.dtype for function in functions.values() for part in function.workspace]
    return max([4, *(np.dtype(dtype).itemsize for dtype in dtypes)])


@dataclass
class _Reader:
    """Walks `main` once; every variable stands for the tensors that it holds."""

    main: Any
    constants: list[Array] = field(default_factory=list)
    _values: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)
    _known: dict[tuple[str, bytes], Tensor] = field(default_factory=dict)

    def steps(self) -> Iterator[Step]:
        for index, parameter in enumerate(self.main.params):
            self._values[parameter] = (_tensor(parameter.ty, Place("input", index)),)
        bindings = [binding for block in self.main.body.blocks for binding in block.bindings]
        steps = [step for binding in bindings for step in self._bind(binding.var, binding.value)]
        outputs = self._value(self.main.body.body)
        direct = {
            tensor: Place("output", index)
            for index, tensor in reversed(list(enumerate(outputs)))
            if tensor.place is None
        }
        placed = {
            tensor: Tensor(tensor.dtype, tensor.nbytes, place) for tensor, place in direct.items()
        }
        for step in steps:
            yield Step(
                step.function,
                tuple(placed.get(tensor, tensor) for tensor in step.arguments),
                tuple(placed.get(tensor, tensor) for tensor in step.results),
            )
        for index, tensor in enumerate(outputs):
            place = Place("output", index)
            if direct.get(tensor) != place:
                target = Tensor(tensor.dtype, tensor.nbytes, place)
                yield Step(None, (placed.get(tensor, tensor),), (target,))

    def _bind(self, variable: Any, value: Any) -> Iterator[Step]:
        name = value.op.name if isinstance(value, relax.Call) and _is_operator(value.op) else ""
        if name != "relax.call_tir":
            self._values[variable] = self._value(value.args[0] if name in VIEWS else value)
            return
        kind = value.ty_args[0]
        kinds = kind.fields if isinstance(kind, relax.TupleType) else [kind]
        results = tuple(_tensor(each) for each in kinds)
        self._values[variable] = results
        arguments = value.args[1].fields
        yield Step(
            value.args[0].name_hint,
            tuple(tensor for argument in arguments for tensor in self._value(argument)),
            results,
        )

    def _value(self, expression: Any) -> tuple[Tensor, ...]:
        if isinstance(expression, tvm.ir.GenericConst):
            return (self._constant(expression.value.numpy()),)
        if isinstance(expression, relax.Tuple):
            return tuple(t for each in expression.fields for t in self._value(each))
        if isinstance(expression, relax.TupleGetItem):
            return (self._value(expression.tuple_value)[expression.index],)
        if expression in self._values:
            return self._values[expression]
        named = getattr(getattr(expression, "op", None), "name", type(expression).__name__)
        raise ModelError(f"{clean(named, 60)} has no C code; replace it in the model")

    def _constant(self, array: Array) -> Tensor:
        key = (array.dtype.name, array.tobytes())
        if key not in self._known:
            place = Place("constant", len(self.constants))
            self.constants.append(array)
            self._known[key] = Tensor(array.dtype.name, array.nbytes, place)
        return self._known[key]


def _is_operator(callee: Any) -> bool:
    return isinstance(callee, tvm.ir.Op)


def _tensor(kind: Any, place: Place | None = None) -> Tensor:
    if not isinstance(kind, relax.TensorType):
        raise ModelError("a value is no tensor; only tensors can be compiled to C")
    dtype = str(kind.dtype)
    elements = prod(int(extent) for extent in kind.shape.values)
    return Tensor(dtype, elements * np.dtype(dtype).itemsize, place)
