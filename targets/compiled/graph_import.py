"""From a lowered graph to Relax; what cannot be compiled is refused first, all of it at once."""

from __future__ import annotations

from typing import Any, get_args

import onnx_ir as ir
from tvm import relax, tirx

from tbn_compile.errors import ModelError, clean
from tbn_compile.targets.compiled.manifest import Dtype, TensorSpec, encodable
from tbn_compile.targets.relax_import import MOST_LISTED, graph_problems, to_relax


def import_graph(model: ir.Model) -> Any:
    """The graph as an IRModule with one Relax function, `main`; symbolic extents stay symbolic.

    Raises:
        ModelError: if it holds operators or element types that cannot be compiled; the text lists
            every such node.
    """
    problems = list(graph_problems(model, _type_problem))
    if problems:
        raise ModelError(f"cannot compile: {'; '.join(problems)}", longest=MOST_LISTED)
    return to_relax(model)


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


def _type_problem(dtype: ir.DataType) -> str | None:
    name = dtype.numpy().name if dtype != ir.DataType.STRING else "string"
    if name in get_args(Dtype):
        return None
    return f"element type {name} cannot be compiled; use one of {', '.join(get_args(Dtype))}"
