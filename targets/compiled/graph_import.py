"""From a lowered graph to Relax; what cannot be compiled is refused first, all of it at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, get_args

import onnx_ir as ir
from tvm import relax, tirx
from tvm.relax.frontend.onnx import from_onnx, onnx_frontend

from tbn_compile.errors import ModelError, clean
from tbn_compile.operators import DOMAIN
from tbn_compile.targets.compiled.manifest import Dtype, TensorSpec, encodable

_MOST_LISTED = 20_000


def import_graph(model: ir.Model) -> Any:
    """The graph as an IRModule with one Relax function, `main`; symbolic extents stay symbolic.

    Raises:
        ModelError: if it holds operators or element types that cannot be compiled; the text lists
            every such node.
    """
    problems = list(_problems(model))
    if problems:
        raise ModelError(f"cannot compile: {'; '.join(problems)}", longest=_MOST_LISTED)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        return from_onnx(ir.to_proto(model), keep_params_in_input=False)
    except ModelError:
        raise
    except Exception as error:  # TVM's errors have no common base
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise ModelError(f"TVM cannot import the graph: {clean(lines[-1], 200)}") from error


def tensor_specs(
    model: ir.Model, module: Any
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of `main`, by the names of the graph.

    Raises:
        ModelError: if the rank of one is only known when the model runs.
    """
    main = module["main"]
    inputs = [value.name or "" for value in model.graph.inputs if value.const_value is None]
    outputs = [value.name or "" for value in model.graph.outputs]
    result = main.ret_ty
    kinds = list(result.fields) if isinstance(result, relax.TupleType) else [result]
    parameters = [parameter.ty for parameter in main.params]
    return (
        tuple(_spec(name, kind) for name, kind in zip(inputs, parameters, strict=True)),
        tuple(_spec(name, kind) for name, kind in zip(outputs, kinds, strict=True)),
    )


def _spec(name: str, kind: Any) -> TensorSpec:
    if not isinstance(kind, relax.TensorType) or not isinstance(kind.shape, relax.ShapeExpr):
        raise ModelError(
            f"{clean(name, 60)!r} has a shape that is only known when the model runs; "
            f"export the model with shapes"
        )
    shape = [int(e) if isinstance(e, tirx.IntImm) else str(e) for e in kind.shape.values]
    return TensorSpec.model_validate(
        {"name": encodable(name), "dtype": str(kind.dtype), "shape": tuple(shape)}
    )


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
        kinds = [output.dtype for output in node.outputs if output.dtype is not None]
        yield from (f"{_name(node)}: {why}" for why in map(_type_problem, kinds[:1]) if why)


def _input_problems(value: ir.Value) -> Iterator[str]:
    name = clean(value.name or "", 60)
    if not isinstance(value.type, ir.TensorType):
        yield f"input {name!r}: it is no tensor"
        return
    problem = _type_problem(value.type.dtype)
    if problem:
        yield f"input {name!r}: {problem}"
    if value.shape is None:
        yield f"input {name!r}: it has no shape; export the model with one"


def _type_problem(dtype: ir.DataType) -> str | None:
    name = dtype.numpy().name if dtype != ir.DataType.STRING else "string"
    if name in get_args(Dtype):
        return None
    return f"element type {name} cannot be compiled; use one of {', '.join(get_args(Dtype))}"


def _name(node: ir.Node) -> str:
    return f"node {clean(node.name or '', 60)!r}"
