"""What a microcontroller cannot run, refused before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import tvm
from tvm import relax

from tbn_compile.errors import ModelError, clean
from tbn_compile.targets.relax_import import MOST_LISTED, graph_problems

_SUPPORTED = (
    "FLOAT", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
)  # fmt: skip
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
    problems = [*graph_problems(model, _type_problem), *_dynamic_dimensions(model)]
    if problems:
        raise ModelError(
            f"cannot compile for a microcontroller: {'; '.join(problems)}", longest=MOST_LISTED
        )


def _dynamic_dimensions(model: ir.Model) -> Iterator[str]:
    for value in model.graph.inputs:
        name = clean(value.name or "", 60)
        for axis, extent in enumerate(value.shape or ()):
            if isinstance(extent, int):
                continue
            label = extent.value or ""
            mend = (
                f"give --input-dim {clean(label, 40)}=N" if label else "export it with a fixed size"
            )
            yield f"input {name!r}: dimension {axis} is dynamic; {mend}"


def _type_problem(dtype: ir.DataType) -> str | None:
    if dtype.name in _SUPPORTED:
        return None
    return _MEND.get(dtype.name, f"element type {dtype.name.lower()} is not supported")


def check_static(module: Any) -> None:
    """Refuse values whose shape is only known when the model runs.

    Args:
        module: what `to_relax` gave.

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
