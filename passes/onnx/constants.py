"""The values of constant expressions in a graph: weights behind Transpose, Cast, Tile, Where, ...

Whatever an exporter or a training-time graph computes from initializers alone is evaluated by
ONNX Runtime itself, so that a weight has the very bits that the reference run would use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from tbn_compile.errors import ModelError, clean
from tbn_compile.loading import tensor_array

MAX_FOLDED_ELEMENTS = 2**27
"""The most elements that one step of a constant expression may have."""
_MOST_REPEATS = 256
"""How many times larger than its constants a step may be: no tiny tile with a huge repeat."""
_ALWAYS_FOLDED = 2**22
_MOST_STEPS = 16
"""How many steps of the largest size an expression may have."""

_FOLDABLE = {
    "Abs", "Add", "And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast",
    "CastLike", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "Div",
    "Equal", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater",
    "GreaterOrEqual", "HardSigmoid", "Identity", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min",
    "Mod", "Mul", "Neg", "Not", "Or", "Pad", "Pow", "QuantizeLinear", "Range", "Reciprocal",
    "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND", "Shape",
    "Sigmoid", "Sign", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile",
    "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
}  # fmt: skip
"""Operators whose cost is linear in what they read and write, and that no random number enters."""
_SMALL = 1024


@dataclass(frozen=True)
class NotConstant:
    """Why a value has no constant, as a phrase that completes "the weight ...".

    Attributes:
        reason: the phrase.
        computed: whether the value depends on the model's inputs, as an activation does.
    """

    reason: str
    computed: bool = False


def constant_array(value: ir.Value, opset: int) -> npt.NDArray[Any] | NotConstant:
    """The value of an initializer, a Constant node or an expression over them.

    Overridable initializers (also listed as graph inputs) are not constant.

    Args:
        value: a value of a graph or of one of its subgraphs.
        opset: the version of the default operator set that the model imports.
    """
    leaf = _leaf(value)
    if leaf is not None:
        return leaf if isinstance(leaf, NotConstant) else tensor_array(leaf)
    expression = _expression(value)
    if isinstance(expression, NotConstant):
        return expression
    return _evaluate(value, opset, *expression)


def _leaf(value: ir.Value) -> ir.TensorProtocol | NotConstant | None:
    """The tensor behind a value, why there is none, or None for a node's result."""
    node = value.producer()
    if node is None:
        if value.is_graph_input():
            overridable = value.const_value is not None
            reason = (
                "is also a graph input, which callers may override; remove it from the inputs"
                if overridable
                else "is a graph input"
            )
            return NotConstant(reason, computed=not overridable)
        if value.const_value is None:
            return NotConstant("is not in the file", computed=True)
        return value.const_value
    if node.op_type == "Constant" and node.domain == "":
        return _constant_tensor(node)
    return None


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | NotConstant:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            return NotConstant("is an argument of a function", computed=True)
        if attribute.type == ir.AttributeType.TENSOR:
            return attribute.as_tensor()
        if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
            return ir.tensor(np.asarray(attribute.value, dtype=np.float32))
        if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
            return ir.tensor(np.asarray(attribute.value, dtype=np.int64))
    return NotConstant("is a constant of a kind that holds no numbers")


def _expression(
    value: ir.Value,
) -> tuple[list[ir.Node], dict[ir.Value, ir.TensorProtocol]] | NotConstant:
    """The nodes between a value and its constant leaves, in execution order, and the leaves."""
    nodes: dict[ir.Node, None] = {}
    leaves: dict[ir.Value, ir.TensorProtocol] = {}
    stack: list[tuple[ir.Value, bool]] = [(value, False)]
    seen: set[ir.Value] = set()
    while stack:
        current, done = stack.pop()
        node = current.producer()
        if done and node is not None:
            nodes.setdefault(node)
            continue
        if current in seen:
            continue
        seen.add(current)
        leaf = _leaf(current)
        if isinstance(leaf, NotConstant):
            name = clean(current.name, 80)
            return NotConstant(f"depends on {name!r}, which {leaf.reason}", leaf.computed)
        if leaf is not None:
            leaves[current] = leaf
            continue
        if node is None or not _foldable(node):
            name = node.op_type if node is not None else "nothing"
            return NotConstant(f"is computed by {name} when the model runs", computed=True)
        stack.append((current, True))
        stack.extend((source, False) for source in node.inputs if source is not None)
    return list(nodes), leaves


def _foldable(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in _FOLDABLE:
        return False
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return all(not a.is_ref() and a.type not in graphs for a in node.attributes.values())


def _evaluate(
    value: ir.Value,
    opset: int,
    nodes: list[ir.Node],
    leaves: Mapping[ir.Value, ir.TensorProtocol],
) -> npt.NDArray[Any] | NotConstant:
    import onnxruntime  # noqa: PLC0415  # costly, and most models need no evaluation

    names = {leaf: f"leaf_{index}" for index, leaf in enumerate(leaves)}
    for node in nodes:
        for output in node.outputs:
            names[output] = f"value_{len(names)}"
    small = {v: t for v, t in leaves.items() if t.size <= _SMALL}
    fed = {v: t for v, t in leaves.items() if t.size > _SMALL}
    model = _expression_model(value, opset, nodes, small, fed, names)
    held = sum(tensor.size for tensor in leaves.values())
    problem = _unsafe_shape(model, max(_ALWAYS_FOLDED, _MOST_REPEATS * held), value)
    if problem:
        return NotConstant(problem)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {
            names[v]: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                np.ascontiguousarray(tensor_array(t)), int(t.dtype)
            )
            for v, t in fed.items()
        }
        (result,) = session.run_with_ort_values([names[value]], feeds)
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's errors share no base class
        text = str(error).strip().splitlines()
        return NotConstant(f"cannot be evaluated: {text[0] if text else type(error).__name__}")
    return _numpy(result)


def _numpy(result: Any) -> npt.NDArray[Any]:
    """A result as numpy; bfloat16, which ONNX Runtime's numpy does not know, as its own dtype."""
    kind = ir.DataType(result.element_type())
    if kind != ir.DataType.BFLOAT16:
        return result.numpy()
    import ctypes  # noqa: PLC0415

    shape = tuple(result.shape())
    raw = ctypes.string_at(result.data_ptr(), 2 * prod(shape))
    return np.frombuffer(raw, dtype=kind.numpy()).reshape(shape)


def _expression_model(
    value: ir.Value,
    opset: int,
    nodes: list[ir.Node],
    small: Mapping[ir.Value, ir.TensorProtocol],
    fed: Mapping[ir.Value, ir.TensorProtocol],
    names: Mapping[ir.Value, str],
) -> onnx.ModelProto:
    graph = onnx.GraphProto(name="constant")
    for leaf, tensor in small.items():
        proto = graph.initializer.add()
        proto.CopyFrom(ir.to_proto(ir.tensor(tensor_array(tensor), dtype=tensor.dtype)))
        proto.name = names[leaf]
    for leaf, tensor in fed.items():
        shape = [int(extent) for extent in tensor.shape.numpy()]
        graph.input.append(
            onnx.helper.make_tensor_value_info(names[leaf], int(tensor.dtype), shape)
        )
    for node in nodes:
        proto = graph.node.add()
        proto.CopyFrom(ir.to_proto(node))
        proto.name = ""
        del proto.input[:], proto.output[:]
        proto.input.extend("" if v is None else names[v] for v in node.inputs)
        proto.output.extend(names[v] for v in node.outputs)
    graph.output.add().name = names[value]
    imports = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)


def _unsafe_shape(model: onnx.ModelProto, honest: int, value: ir.Value) -> str | None:
    """Infer every step's shape; complain of one that is unknown or too large to compute.

    Node by node: the inference of whole graphs sizes buffers by what the graph claims.

    Args:
        model: the expression.
        honest: the most elements that its constants can mean to make.
        value: what the expression computes.

    Raises:
        ModelError: if a step is larger than that, a small file that claims a huge tensor, or if
            its shape contradicts itself.
    """
    most, total = min(honest, MAX_FOLDED_ELEMENTS), 0
    kinds = {value.name: value.type for value in model.graph.input}
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in known.items():
        kinds[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    for node in model.graph.node:
        try:
            outputs = _infer(node, model, kinds, known)
        except onnx.shape_inference.InferenceError as error:
            text = clean(" ".join(str(error).split()), 200)
            raise ModelError(
                f"tensor {clean(value.name, 80)!r} has no valid shape: {text}"
            ) from error
        except Exception as error:  # noqa: BLE001  # several C++ errors, no common base
            return f"has no valid shape: {str(error).strip().splitlines()[0]}"
        for name in filter(None, node.output):
            kind = outputs.get(name, onnx.TypeProto()).tensor_type
            dims = kind.shape.dim
            if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
                return f"is computed by {node.op_type} with a shape that is not known in advance"
            size = prod(dim.dim_value for dim in dims)
            if size > honest:
                raise ModelError(
                    f"tensor {clean(value.name, 80)!r}: {node.op_type} repeats its constants to "
                    f"{size} elements, more than {honest}; store the tensor"
                )
            total += size
            if size > most or total > _MOST_STEPS * most:
                return f"is computed by {node.op_type} with over {most} elements, too many to fold"
        kinds.update(outputs)
    model.graph.output[0].type.CopyFrom(kinds[model.graph.output[0].name])
    return None


def _infer(
    node: onnx.NodeProto,
    model: onnx.ModelProto,
    kinds: Mapping[str, onnx.TypeProto],
    known: dict[str, onnx.TensorProto],
) -> dict[str, onnx.TypeProto]:
    """The types of a node's results; small integers and truths are computed and join `known`."""
    imports = list(model.opset_import)
    schema = onnx.defs.get_schema(node.op_type, imports[0].version, "")
    read = {name: kinds[name] for name in node.input if name}
    data = {name: known[name] for name in read if name in known}
    outputs = onnx.shape_inference.infer_node_outputs(
        schema, node, read, data, opset_imports=imports, ir_version=model.ir_version
    )
    kind = outputs.get(node.output[0], onnx.TypeProto()).tensor_type
    size = prod(dim.dim_value for dim in kind.shape.dim)
    asks_shape = node.op_type in ("Shape", "Size")
    if kind.elem_type not in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL) or size > _SMALL:
        return outputs
    if asks_shape or len(data) == len(read):
        from onnx.reference import ReferenceEvaluator  # noqa: PLC0415  # slow to import

        feeds = {
            name: _empty(kinds[name]) if asks_shape else onnx.numpy_helper.to_array(data[name])
            for name in read
        }
        results = ReferenceEvaluator(node).run(None, feeds)
        for name, result in zip(node.output, results, strict=True):
            known[name] = onnx.numpy_helper.from_array(np.asarray(result), name)
    return outputs


def _empty(kind: onnx.TypeProto) -> npt.NDArray[np.int8]:
    """An array of the shape that holds no memory."""
    return np.broadcast_to(np.int8(0), [dim.dim_value for dim in kind.tensor_type.shape.dim])
