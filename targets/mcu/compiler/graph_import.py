"""From a lowered graph to Relax; what a microcontroller cannot run is refused first."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import onnx_ir as ir
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx, onnx_frontend

from tbn_compile.errors import ModelError, clean
from tbn_compile.operators import DOMAIN

_SUPPORTED = (
    "FLOAT", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
)  # fmt: skip
_MOST_LISTED = 20_000
_MEND = {
    "DOUBLE": "float64; export the model in float32",
    "FLOAT16": "float16; export the model in float32",
    "BFLOAT16": "bfloat16; export the model in float32",
}


def check_graph(model: ir.Model) -> None:
    """Refuse what no microcontroller target compiles.

    Raises:
        ModelError: if the graph holds operators, element types or dynamic shapes that cannot be
            compiled; the text lists every such node.
    """
    problems = list(_problems(model))
    if problems:
        raise ModelError(
            f"cannot compile for a microcontroller: {'; '.join(problems)}", longest=_MOST_LISTED
        )


def import_graph(model: ir.Model) -> Any:
    """The graph as an IRModule with one Relax function, `main`.

    Args:
        model: one that `check_graph` lets pass.

    Raises:
        ModelError: if TVM cannot import it.
    """
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):  # it prints graphs that it cannot convert
            return from_onnx(ir.to_proto(model), keep_params_in_input=False)
    except ModelError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise ModelError(f"TVM cannot import the graph: {clean(lines[-1], 200)}") from error


def _problems(model: ir.Model) -> Iterator[str]:
    if all(value.const_value is not None for value in model.graph.inputs):
        yield "the model has no inputs, so that all its outputs are constants"
    for value in model.graph.inputs:
        yield from _input_problems(value)
    known = onnx_frontend._get_convert_map()  # the frontend offers no public list
    for node in model.graph.all_nodes():
        if node.domain not in ("", DOMAIN) or node.op_type not in known:
            domain = f"{node.domain}::" if node.domain else ""
            yield f"{_name(node)}: operator {clean(domain + node.op_type, 60)} is not supported"
            continue
        yield from _result_problems(node)


def _input_problems(value: ir.Value) -> Iterator[str]:
    name = clean(value.name or "", 60)
    if not isinstance(value.type, ir.TensorType):
        yield f"input {name!r}: it is no tensor"
        return
    if value.dtype is not None and value.dtype.name not in _SUPPORTED:
        yield f"input {name!r}: {_type_problem(value.dtype)}"
    if value.shape is None:
        yield f"input {name!r}: it has no shape; export the model with one"
        return
    for axis, extent in enumerate(value.shape):
        if isinstance(extent, int):
            continue
        label = extent.value or ""
        mend = f"give --input-dim {clean(label, 40)}=N" if label else "export it with a fixed size"
        yield f"input {name!r}: dimension {axis} is dynamic; {mend}"


def _result_problems(node: ir.Node) -> Iterator[str]:
    for output in node.outputs:
        if output.dtype is not None and output.dtype.name not in _SUPPORTED:
            yield f"{_name(node)}: {_type_problem(output.dtype)}"
            return


def _type_problem(dtype: ir.DataType) -> str:
    return _MEND.get(dtype.name, f"element type {dtype.name.lower()} is not supported")


def _name(node: ir.Node) -> str:
    if node.name:
        return f"node {clean(node.name, 60)!r}"
    result = node.outputs[0].name if node.outputs else ""
    return f"unnamed {clean(node.op_type, 40)} node that gives {clean(result or '', 60)!r}"


def check_static(module: Any) -> None:
    """Refuse values whose shape is only known when the model runs.

    Args:
        module: what `import_graph` gave.

    Raises:
        ModelError: if there is one; the text lists them.
    """
    dynamic = []

    def visit(expression: Any) -> None:
        if isinstance(expression, relax.Call) and _is_dynamic(expression.ty):
            dynamic.append(clean(getattr(expression.op, "name", "a function"), 60))

    relax.analysis.post_order_visit(module["main"], visit)
    if dynamic:
        listed = ", ".join(sorted(set(dynamic)))
        raise ModelError(
            f"results of {listed} have shapes that are only known when the model runs; replace "
            f"these operators by ones of fixed shapes"
        )


def _is_dynamic(kind: Any) -> bool:
    if isinstance(kind, relax.TupleType):
        return any(_is_dynamic(field) for field in kind.fields)
    if not isinstance(kind, relax.TensorType):
        return False
    if not isinstance(kind.shape, relax.ShapeExpr):
        return True
    return not all(isinstance(extent, tvm.tirx.IntImm) for extent in kind.shape.values)
