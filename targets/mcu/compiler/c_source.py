"""From TVM functions to C99 that needs `stdint.h`, `string.h` and `math.h` alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx

from tbn_compile.errors import ModelError, clean
from tbn_compile.targets.mcu.compiler.c_constants import c_type, float_literal

PREFIX = "tvmgen_default_"
"""What every external name begins with, as consumers of the archive expect."""

_TARGET = tvm.target.Target("c")
_NARROW = {"int8": "int32", "int16": "int32", "uint8": "uint32", "uint16": "uint32"}
_BITS = "float_bits_"
_VARIABLE = re.compile(r"^ *(?:_Bool|float|u?int\d+_t) (\w+) = .*;\n", re.M)
_SPELLING = (
    (re.compile(rf"{_BITS}([0-9a-f]{{8}})\(\)"), lambda m: float_literal(_float_of(m[1]))),
    (re.compile(r"\bbool\b"), lambda _: "_Bool"),
)


@dataclass(frozen=True)
class Parameter:
    """A pointer that a C function takes.

    Attributes:
        dtype: of its elements, as numpy names it.
        elements: how many it points to.
        is_input: whether the function only reads it.
    """

    dtype: str
    elements: int
    is_input: bool

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class CFunction:
    """A function in C.

    Attributes:
        name: its external name.
        parameters: those of the TVM function, then one for each part of the workspace it needs.
        workspace_count: how many of them are workspace.
        text: its definition.
    """

    name: str
    parameters: tuple[Parameter, ...]
    workspace_count: int
    text: str

    @property
    def workspace(self) -> tuple[Parameter, ...]:
        """The parameters that are workspace."""
        return self.parameters[len(self.parameters) - self.workspace_count :]


def write_functions(functions: Mapping[str, Any], results: Mapping[str, int]) -> list[CFunction]:
    """C for TVM functions with static shapes.

    Buffers that a function allocates in scope "global" become parameters, for the caller to place;
    those in scope "local" stay variables.

    Args:
        functions: PrimFuncs by the name that the C function gets behind `PREFIX`.
        results: how many of each one's last parameters it writes.

    Raises:
        ModelError: if TVM has no C code for what a function computes.
    """
    return [_write(name, function, results[name]) for name, function in functions.items()]


def _write(name: str, function: Any, results: int) -> CFunction:
    symbol = f"{PREFIX}{name}"
    try:
        lowered, workspaces = _lower(symbol, function)
        module = tirx.transform.LowerIntrin()(tvm.IRModule({symbol: lowered}))
        source = tvm.get_global_func("target.build.c")(module, _TARGET).inspect_source()
    except Exception as error:  # TVM's errors have no common base
        raise ModelError(
            f"{name} has no C code: {clean(str(error).splitlines()[0], 120)}; replace that operator"
        ) from error
    reads = len(lowered.params) - workspaces - results
    parameters = tuple(
        Parameter(str(buffer.ty.dtype), prod(int(e) for e in buffer.ty.shape), index < reads)
        for index, buffer in enumerate(_buffers(lowered))
    )
    body = _body(symbol, source)
    names = [f"p{index}" for index in range(len(parameters))]
    text = f"{_signature(symbol, parameters)} {{\n{unused(names, body)}{body}}}"
    return CFunction(symbol, parameters, workspaces, text)


def unused(names: Iterable[str], body: str) -> str:
    """Statements that name the parameters which a body does not, so that no compiler warns."""
    return "".join(f"  (void){name};\n" for name in names if not re.search(rf"\b{name}\b", body))


def extremes(text: str) -> list[str]:
    """Definitions of those functions of ours that a text calls."""
    called = sorted(set(re.findall(r"\b(?:greater|lesser)_\w+(?=\()", text)))
    return [_extreme(name, name.partition("_")[2]) for name in called]


def _extreme(name: str, dtype: str) -> str:
    kind, sign = c_type(dtype), ">" if name.startswith("greater") else "<"
    return f"static inline {kind} {name}({kind} a, {kind} b) {{ return a {sign} b ? a : b; }}"


def declaration(function: CFunction) -> str:
    """The prototype of a function."""
    return f"{_signature(function.name, function.parameters)};"


def _signature(name: str, parameters: Iterable[Parameter]) -> str:
    listed = ", ".join(
        f"{'const ' if parameter.is_input else ''}{c_type(parameter.dtype)}* restrict p{index}"
        for index, parameter in enumerate(parameters)
    )
    return f"void {name}({listed or 'void'})"


def _lower(symbol: str, function: Any) -> tuple[Any, int]:
    """A function of flat loops whose parameters are pointers, and how many are workspace."""
    module = tvm.IRModule({symbol: function.with_attr("global_symbol", symbol)})
    module = tirx.transform.BindTarget(_TARGET.with_host(_TARGET))(module)
    with tvm.transform.PassContext(config=_SIMPLIFY):
        return _with_pointers(_flatten(module)[symbol])


_flatten = tvm.transform.Sequential(
    [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.UnrollLoop(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
    ]
)
_SIMPLIFY = {"tirx.StmtSimplify": {"apply_constraints_to_boolean_branches": True}}


def _with_pointers(function: Any) -> tuple[Any, int]:
    """Pointers for parameters and workspace, and nothing that TVM 0.27 would write wrongly in C.

    Its backend gives the operands of Max and Min names that outlive stores to them.
    """
    pointers: list[Any] = []
    declarations: list[Any] = []

    def declare(buffer: Any) -> Any:
        pointer = tirx.Var(f"p{len(pointers)}", tvm.ir.PointerType(buffer.ty.dtype))
        pointers.append(pointer)
        return tirx.DeclBuffer(buffer, data=pointer)

    declarations.extend(declare(buffer) for buffer in function.params)
    parameters = len(pointers)
    variables: dict[Any, Any] = {}

    def place(allocation: Any) -> Any:
        if allocation.buffer.scope() == "local":
            variables[allocation.buffer] = _without_scope(allocation.buffer)
            return allocation
        return declare(allocation.buffer)

    body = tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, place))
    body = tvm_ffi.structural_map(
        body,
        [
            (tvm.ir.Var, lambda variable: variables.get(variable, variable)),
            (tirx.FloatImm, _exact),
            ((tirx.Add, tirx.Sub, tirx.Mul), _widened),
            (tvm.ir.Call, _portable),
            ((tirx.Max, tirx.Min), _as_call),
        ],
    )
    body = tirx.SeqStmt([*declarations, body])
    rewritten = tirx.PrimFunc(pointers, body, function.ret_type, function.attrs)
    return rewritten, len(pointers) - parameters


def _without_scope(buffer: Any) -> Any:
    """The same buffer in scope "global", the only one that TVM's C backend knows."""
    return tirx.decl_buffer(buffer.ty.shape, buffer.ty.dtype, buffer.name, layout=None)


def _buffers(function: Any) -> list[Any]:
    """The buffers declared on a function's pointers, in the order of the parameters."""
    order = {pointer.name: index for index, pointer in enumerate(function.params)}
    found: dict[int, Any] = {}

    def note(declared: Any) -> None:
        if isinstance(declared.data, tvm.ir.Var) and declared.data.name in order:
            found.setdefault(order[declared.data.name], declared.buffer)

    tvm_ffi.structural_walk(function.body, [(tirx.DeclBuffer, note)])
    return [found[index] for index in range(len(order))]


def _exact(constant: Any) -> Any:
    """A float32 constant that TVM's seven digits would not hold, as a call to spell out later."""
    value = float(constant.value)
    if str(constant.ty.dtype) != "float32":
        return constant
    if np.isfinite(value) and np.float32(f"{value:e}") == np.float32(value):
        return constant
    bits = int(np.float32(value).view(np.uint32))
    return tirx.call_pure_extern("float32", f"{_BITS}{bits:08x}")


def _as_call(extreme: Any) -> Any:
    """Max or Min as a call of a function of ours, which evaluates each operand once."""
    dtype = str(extreme.ty.dtype)
    name = f"{'greater' if isinstance(extreme, tirx.Max) else 'lesser'}_{dtype}"
    return tirx.call_pure_extern(dtype, name, extreme.a, extreme.b)


def _portable(call: Any) -> Any:
    """Intrinsics that TVM's C backend does not know, as functions of `math.h`."""
    if getattr(call.op, "name", "") != "tirx.fabs" or str(call.ty.dtype) != "float32":
        return call
    return tirx.call_pure_extern("float32", "fabsf", call.args[0])


def _float_of(digits: str) -> float:
    return float(np.uint32(int(digits, 16)).view(np.float32))


def _widened(operation: Any) -> Any:
    """Arithmetic on 8 or 16 bits with the conversions that C makes written out."""
    dtype = str(operation.ty.dtype)
    if dtype not in _NARROW:
        return operation
    wide = _NARROW[dtype]
    return type(operation)(operation.a.astype(wide), operation.b.astype(wide)).astype(dtype)


def _body(symbol: str, source: str) -> str:
    """The body of a function in TVM's text, without its prelude and prototypes."""
    pattern = re.compile(rf"^TVM_DLL void {symbol}\([^;{{]*\) \{{\n(.*?)^\}}\n", re.M | re.S)
    match = pattern.search(source)
    if match is None:
        raise ModelError(f"TVM wrote no function {symbol}; report this model")
    body = match[1]
    for spelled, replacement in _SPELLING:
        body = spelled.sub(replacement, body)
    return _without_idle_variables(body)


def _without_idle_variables(body: str) -> str:
    """The body less the variables that TVM's passes leave unused; their values are pure."""
    words = Counter(re.findall(r"\w+", body))
    idle = [match for match in _VARIABLE.finditer(body) if words[match[1]] == 1]
    for match in idle:
        body = body.replace(match[0], "")
    return _without_idle_variables(body) if idle else body
