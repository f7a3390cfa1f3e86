"""From a lowered Relax module to the bytes of a shared library."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.support import cc

from tbn_compile.errors import ModelError, TbnError, UsageError, clean


def build_library(module: Any, target: Any) -> bytes:
    """Compile every function and link them, with the constants, into one shared library.

    Args:
        module: Relax and TIR, scheduled.
        target: TVM's description of the device, with its host.

    Raises:
        ModelError: if TVM has no code for a function.
        UsageError: if there is no C++ compiler to link with.
    """
    if cc.get_cc() is None:
        raise UsageError("no C++ compiler to link with; install g++ or clang++, or name one in CXX")
    with naming_tvm("compile"), tempfile.TemporaryDirectory() as folder:
        module = AllowAnyAlignment()(module)  # type: ignore[operator]
        # TVM's default passes for a GPU would fuse and schedule once more.
        passes = [relax.get_pipeline("default_build"), OrderShapeStores()]
        pipeline = tvm.transform.Sequential(passes)
        executable = tvm.compile(module, target=target, relax_pipeline=pipeline)
        library = Path(folder) / "model.so"
        executable.export_library(str(library))
        return library.read_bytes()


@tvm.transform.module_pass(opt_level=0)
class OrderShapeStores:
    """Sort the stores of TVM's functions that compute symbolic extents.

    They come in the order of a hash table of addresses. Each gives a place of its own, from
    extents that were known before the call.
    """

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Rewrite every such function of an IRModule."""
        for name, function in module.functions_items():
            if name.name_hint.startswith("shape_func") and isinstance(function.body, tirx.SeqStmt):
                module.update_func(name, function.with_body(_sorted_stores(function.body)))
        return module


def _sorted_stores(body: Any) -> Any:
    if not all(isinstance(statement, tirx.BufferStore) for statement in body):
        return body
    return tirx.SeqStmt(sorted(body, key=lambda store: int(store.indices[0])))


@contextmanager
def naming_tvm(action: str) -> Generator[None]:
    """Turn TVM's errors into one line.

    Raises:
        ModelError: in place of any error that is not ours.
    """
    try:
        yield
    except TbnError:
        raise
    except Exception as error:  # TVM's errors have no common base
        lines = [line for line in str(error).splitlines() if line.strip()]
        lines = lines or [type(error).__name__]  # what follows the first is the graph or a trace
        raise ModelError(f"TVM cannot {action} the graph: {clean(lines[0], 200)}") from error


@tvm.transform.module_pass(opt_level=0)
class AllowAnyAlignment:
    """Let functions take tensors that are aligned to one element only.

    TVM assumes 64 bytes and its vector loads fail on anything else; a caller's numpy array or a
    slice of a tensor is seldom aligned so, and must not be copied.
    """

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Rewrite every TIR function of an IRModule."""
        for name, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc):
                module.update_func(name, _allow_any_alignment(function))
        return module


def _allow_any_alignment(function: Any) -> Any:
    replaced = {
        parameter: _aligned_to_element(parameter)
        for parameter in function.params
        if isinstance(parameter.ty, tirx.BufferType)
    }
    body = tvm_ffi.structural_map(
        function.body, (tvm.ir.Var, lambda variable: replaced.get(variable, variable))
    )
    parameters = [replaced.get(parameter, parameter) for parameter in function.params]
    return tirx.PrimFunc(parameters, body, function.ret_type, function.attrs)


def _aligned_to_element(buffer: Any) -> Any:
    kind = buffer.ty
    return tirx.decl_buffer(
        kind.shape,
        kind.dtype,
        buffer.name,
        strides=kind.strides,
        elem_offset=kind.elem_offset,
        scope=buffer.scope(),
        data_alignment=max(1, tvm_ffi.dtype(str(kind.dtype)).itemsize),
        offset_factor=kind.offset_factor,
        layout=kind.layout,
    )
