"""Give a model the bodies of the `ai.tbn` operators that it uses."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from tbn_compile import operators
from tbn_compile.passes.onnx.tiled_nodes import tiled_nodes

_FIRST_WITH_FUNCTIONS = 8
"""The IR version from which a model can carry functions."""


class AddFunctionBodiesPass(ir.passes.InPlacePass):
    """Add a model-local function per operator in use, so that any runtime can run the file."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Write all bodies in use, over any of that name; they import the model's operator set."""
        used = {node.op_type for node in tiled_nodes(model)}
        completed = [_write_defaults(node) for node in tiled_nodes(model)]
        opset = model.opset_imports.get("", operators.MIN_OPSET)
        replaced = [_write_body(model, operator, opset) for operator in sorted(used)]
        if used:
            model.ir_version = max(model.ir_version, _FIRST_WITH_FUNCTIONS)
            model.opset_imports[operators.DOMAIN] = operators.VERSION
        return ir.passes.PassResult(model, modified=any(replaced) or any(completed))


def _write_body(model: ir.Model, operator: str, opset: int) -> bool:
    """Write an operator's body unless the model has that very one; says whether it was written."""
    function = ir.serde.deserialize_function(operators.function_body(operator, opset))
    present = model.functions.get(function.identifier())
    if present is not None and _nodes(present) == _nodes(function):
        return False
    model.functions[function.identifier()] = function
    return True


def _write_defaults(node: ir.Node) -> bool:
    """Write out the numbers that the node leaves to their default: a body knows no defaults."""
    missing = {
        name: default
        for name, _, default, _ in operators.attributes_of(node.op_type)
        if isinstance(default, int | float) and name not in node.attributes
    }
    for name, default in missing.items():
        node.attributes[name] = ir.convenience.convert_attribute(name, default)
    return bool(missing)


def _nodes(function: ir.Function) -> list[onnx.NodeProto]:
    return list(ir.serde.serialize_function(function).node)
