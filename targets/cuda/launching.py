"""Pieces of TIR functions that launch kernels whose CUDA source travels with them."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from tvm import tirx
from tvm.ir import PointerType, PrimType, StringImm
from tvm.script import tirx as T
from tvm.tirx.script import builder

_DEVICE_CUDA = 2
_COMPUTE_VERSION, _MULTIPROCESSORS = 4, 7
_NO, _YES = 1, 2
# TVM FFI's stable C interface: a string object is a header, then the address of its text.
_OBJECT_HEADER = 24


def call_source(name: str, source: str, *arguments: Any) -> None:
    """Call a device function, its source going into the module once."""
    T.evaluate(T.cuda.func_call(name, *arguments, source_code=source))


def digest(*parts: Any) -> str:
    """Equal for equal kernels, so that layers share their code."""
    return sha256(repr(parts).encode()).hexdigest()[:12]


def multiprocessors() -> Any:
    """How many blocks run at once, asked of the device when the function is called."""
    return T.call_packed("runtime.GetDeviceAttr", _DEVICE_CUDA, 0, _MULTIPROCESSORS)


def is_compute_capability(version: str) -> Any:
    """Whether the device is of this compute capability, asked when the function is first called.

    The runtime tells it as a string object, of which TIR sees the address. The object is never
    released, so the answer is kept.

    Args:
        version: such as "9.0".
    """
    expected = version.encode() + b"\0"
    answer = _memory("int64", 1, "tirx.tvm_static_handle")  # zero until it is known
    with T.If(answer[0] == 0), T.Then():
        question = (StringImm("runtime.GetDeviceAttr"), _DEVICE_CUDA, 0, _COMPUTE_VERSION)
        told = builder.Bind(T.call_intrin("int64", "tirx.tvm_call_packed", *question))
        address = _memory("int64", 1, "tirx.reinterpret", told + _OBJECT_HEADER)
        text = _memory("uint8", len(expected), "tirx.reinterpret", address[0])
        matches = [text[i] == byte for i, byte in enumerate(expected)]
        T.buffer_store(answer, T.Select(tirx.all(*matches), T.int64(_YES), T.int64(_NO)), [0])
    return answer[0] == _YES


def _memory(dtype: str, count: int, intrinsic: str, *arguments: Any) -> Any:
    """What lies at the address, on the host, that an intrinsic gives."""
    pointer = PointerType(PrimType(dtype))
    data = builder.Bind(T.call_intrin(pointer, intrinsic, *arguments), type_annotation=pointer)
    return T.decl_buffer((count,), dtype, data=data)
