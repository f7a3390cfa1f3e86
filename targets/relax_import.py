"""From a lowered graph to Relax, and what of it cannot be compiled: for targets that use TVM."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from traceback import walk_tb
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import topi
from tvm.relax.frontend.onnx import from_onnx, onnx_frontend

from tbn_compile.errors import ModelError, clean
from tbn_compile.operators import DOMAIN
from tbn_compile.passes.onnx import ReplaceExpandPass

MOST_LISTED = 20_000
"""Characters of an error that lists every node which cannot be compiled."""


def to_relax(model: ir.Model) -> Any:
    """The graph as an IRModule with one Relax function, `main`; symbolic extents stay symbolic.

    Raises:
        ModelError: if TVM cannot import it.
    """
    try:
        with _quiet("onnx_ir"), redirect_stdout(io.StringIO()):  # TVM prints what it cannot convert
            readable = ReplaceExpandPass()(model).model
            return from_onnx(ir.to_proto(readable), keep_params_in_input=False)
    except ModelError:
        raise
    except Exception as error:  # TVM's errors have no common base
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        where = _failed_node(error) or "the graph"
        raise ModelError(f"TVM cannot import {where}: {clean(lines[0], 200)}") from error


def legalize_take(builder: Any, call: Any) -> Any:
    """TIR for `relax.take` as ONNX has it: negative indices count from the end.

    None reads outside of the tensor, as TVM's own way would. For `relax.transform.LegalizeOps`.
    """
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    return builder.call_te(topi.take, call.args[0], call.args[1], axis, mode="wrap")


def _failed_node(error: Exception) -> str | None:
    """The node that TVM's frontend was at, which its errors do not tell."""
    for frame, _ in walk_tb(error.__traceback__):
        node = frame.f_locals.get("node")
        if frame.f_code.co_name == "_construct_nodes" and node is not None:
            what = f"node {clean(node.name, 60)!r}" if node.name else "an unnamed node"
            return f"{what} ({clean(node.op_type, 40)})"
    return None


@contextmanager
def _quiet(name: str) -> Generator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def graph_problems(
    model: ir.Model, type_problem: Callable[[ir.DataType], str | None]
) -> Iterator[str]:
    """Why a graph cannot be compiled: a line for every input and node that stands in the way.

    Args:
        model: a lowered graph.
        type_problem: why a target does not take an element type, or None: it does.
    """
    if all(value.const_value is not None for value in model.graph.inputs):
        yield "the model has no inputs, so that all its outputs are constants"
    for value in model.graph.inputs:
        yield from _input_problems(value, type_problem)
    known = onnx_frontend._get_convert_map()  # the frontend offers no public list
    for node in model.graph.all_nodes():
        if node.domain not in ("", DOMAIN) or node.op_type not in known:
            domain = f"{node.domain}::" if node.domain else ""
            yield f"{_name(node)}: operator {clean(domain + node.op_type, 60)} is not supported"
            continue
        kinds = (output.dtype for output in node.outputs if output.dtype is not None)
        reasons = (reason for reason in map(type_problem, kinds) if reason)
        yield from (f"{_name(node)}: {reason}" for reason in list(reasons)[:1])


def agrees(result: Any, reference: Any, tolerance: float) -> bool:
    """Whether an output means the same: in shape and type, and nearly in its values.

    Args:
        result: what was compiled gives.
        reference: what ONNX Runtime gives.
        tolerance: share of the largest magnitude; integers may be off by one besides.
    """
    if result.shape != reference.shape or result.dtype != reference.dtype:
        return False
    exact, computed = reference.astype(np.float64), result.astype(np.float64)
    largest = float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0))
    step = 1.0 if reference.dtype.kind in "iu" else 0.0
    allowed = tolerance * largest + step + 1e-6
    return np.allclose(computed, exact, rtol=0.0, atol=allowed, equal_nan=True)


def _input_problems(
    value: ir.Value, type_problem: Callable[[ir.DataType], str | None]
) -> Iterator[str]:
    name = clean(value.name or "", 60)
    if not isinstance(value.type, ir.TensorType):
        yield f"input {name!r}: it is no tensor"
        return
    problem = type_problem(value.type.dtype)
    if problem:
        yield f"input {name!r}: {problem}"
    if value.shape is None:
        yield f"input {name!r}: it has no shape; export the model with one"


def _name(node: ir.Node) -> str:
    if node.name:
        return f"node {clean(node.name, 60)!r}"
    result = node.outputs[0].name if node.outputs else ""
    return f"unnamed {clean(node.op_type, 40)} node that gives {clean(result or '', 60)!r}"
