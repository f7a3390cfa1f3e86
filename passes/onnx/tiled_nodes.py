"""Make, read and change nodes of the `ai.tbn` operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tbn_compile import operators
from tbn_compile.errors import ModelError
from tbn_compile.loading import tensor_array
from tbn_compile.tile import Floats, Layout, TiledBinaryWeight

_KINDS = {
    np.dtype(np.float32): ir.DataType.FLOAT,
    np.dtype(np.float16): ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16.numpy(): ir.DataType.BFLOAT16,
}
FLOAT_KINDS = frozenset(_KINDS.values())


class Initializers:
    """New initializers of a model; equal ones are stored once, with names that are free."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._stored: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._names = {
            value.name
            for graph in model.graphs()
            for value in (
                *graph.inputs,
                *graph.initializers.values(),
                *(output for node in graph for output in node.outputs),
            )
        }
        for node in constant_tiled_nodes(model):
            for value in filter(None, node.inputs[1:]):
                self._stored.setdefault(_key(_array(value)), value)

    def add(self, name: str, array: Floats) -> ir.Value:
        """Store an array in the main graph, where every subgraph sees it."""
        stored = self._stored.get(_key(array))
        if stored is not None and stored.graph is self._graph:
            return stored
        kind = _KINDS.get(array.dtype)
        free = self.free_name(name)
        tensor = ir.tensor(array, dtype=kind, name=free)
        value = ir.Value(
            name=free,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        self._stored[_key(array)] = value
        return value

    def free_name(self, name: str) -> str:
        """`name`, or `name_1`, `name_2`, ... if it is taken; the result is then taken too."""
        free, count = name, 0
        while free in self._names:
            count += 1
            free = f"{name}_{count}"
        self._names.add(free)
        return free


def _key(array: Floats) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.name, array.shape, array.tobytes()


def nodes_of(model: ir.Model, *operator_types: str, domain: str = "") -> Iterator[ir.Node]:
    """The nodes of these types in the graph and its subgraphs, in order; safe to change."""
    for node in list(model.graph.all_nodes()):
        if node.op_type in operator_types and node.domain == domain and node.graph is not None:
            yield node


def tiled_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All `ai.tbn` nodes, in order."""
    return nodes_of(model, operators.GEMM, operators.CONV, domain=operators.DOMAIN)


def constant_tiled_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The `ai.tbn` nodes whose tile, scale and bias are constants that no caller may override."""
    for node in tiled_nodes(model):
        values = [value for value in node.inputs[1:] if value is not None]
        if all(v.const_value is not None and not v.is_graph_input() for v in values):
            yield node


def make_tiled_node(
    operator: str,
    source: ir.Node,
    x: ir.Value,
    weight: TiledBinaryWeight,
    bias: Floats | None,
    attributes: Mapping[str, Any],
    initializers: Initializers,
) -> ir.Node:
    """A node of `operator` in the place of `source`, not yet in the graph."""
    name = source.name or source.outputs[0].name or operator
    inputs = [
        x,
        initializers.add(f"{name}.tile", weight.bits),
        initializers.add(f"{name}.scale", weight.scale),
    ]
    if bias is not None:
        inputs.append(initializers.add(f"{name}.bias", bias))
    values = {
        **operators.weight_attributes(weight),
        "activation_min": -operators.INFINITY,
        "activation_max": operators.INFINITY,
        **operators.attribute_values(attributes),
    }
    node = ir.node(operator, inputs, values, domain=operators.DOMAIN, name=source.name, version=1)
    node.doc_string = source.doc_string
    node.metadata_props.update(source.metadata_props)
    return node


def replace(old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put nodes in the place of one; the last new node's result takes the old one's name."""
    graph = old.graph
    if graph is None:
        raise ModelError(f"node {old.name!r} is in no graph")
    ir.convenience.replace_nodes_and_values(
        graph, old, [old], list(new), list(old.outputs), [new[-1].outputs[0]]
    )


def absorb(node: ir.Node, follower: ir.Node) -> None:
    """Remove a node that only follows `node`; `node`'s result takes its place and name."""
    graph = follower.graph
    if graph is None:
        raise ModelError(f"node {follower.name!r} is in no graph")
    result = follower.outputs[0]
    ir.convenience.replace_nodes_and_values(
        graph, follower, [follower], [], [result], [node.outputs[0]]
    )


def only_follower(node: ir.Node, *operator_types: str) -> ir.Node | None:
    """The one node of these types that alone uses `node`'s result in the same graph."""
    result = node.outputs[0]
    if result.is_graph_output() or len(result.uses()) != 1:
        return None
    follower = result.consumers()[0]
    if follower.domain != "" or follower.op_type not in operator_types:
        return None
    return follower if follower.graph is node.graph else None


def read_weight(node: ir.Node) -> TiledBinaryWeight:
    """The weight of an `ai.tbn` node.

    Raises:
        ModelError: if its tile or scale is not an initializer.
    """
    tile, scale = (_initializer(node, index) for index in (1, 2))
    shape = tuple(node.attributes["weight_shape"].as_ints())
    transposed = node.attributes.get_int("transB", 1)
    layout: Layout = "NK" if transposed else "KN"
    return TiledBinaryWeight(
        bits=tile,
        shape=shape,
        tile_length=node.attributes["tile_length"].as_int(),
        scale=scale,
        scale_length=node.attributes["scale_length"].as_int(),
        offset=int(node.attributes.get_int("offset", 0) or 0),
        scale_offset=int(node.attributes.get_int("scale_offset", 0) or 0),
        layout=layout,
    )


def write_weight(node: ir.Node, weight: TiledBinaryWeight, initializers: Initializers) -> None:
    """Give an `ai.tbn` node another weight of the same shape."""
    name = node.name or node.outputs[0].name or node.op_type
    node.replace_input_with(1, initializers.add(f"{name}.tile", weight.bits))
    node.replace_input_with(2, initializers.add(f"{name}.scale", weight.scale))
    for key, value in operators.weight_attributes(weight).items():
        node.attributes[key] = (
            ir.AttrInt64(key, value) if isinstance(value, int) else ir.AttrInt64s(key, value)
        )


def read_bias(node: ir.Node) -> Floats | None:
    """The bias of an `ai.tbn` node, float[N], or None."""
    has_bias = len(node.inputs) > 3 and node.inputs[3] is not None
    return _initializer(node, 3) if has_bias else None


def write_bias(node: ir.Node, bias: Floats, initializers: Initializers) -> None:
    """Give an `ai.tbn` node a bias, float[N]."""
    name = node.name or node.outputs[0].name or node.op_type
    if len(node.inputs) < 4:
        node.resize_inputs(4)
    node.replace_input_with(3, initializers.add(f"{name}.bias", bias))


def clamps(node: ir.Node) -> bool:
    """Whether an `ai.tbn` node already ends in an activation."""
    bounds = (
        node.attributes.get_float("activation_min", -operators.INFINITY),
        node.attributes.get_float("activation_max", operators.INFINITY),
    )
    return bounds != (-operators.INFINITY, operators.INFINITY)


def outputs_of(node: ir.Node) -> int:
    """N, the number of output features or channels of an `ai.tbn` node."""
    shape = node.attributes["weight_shape"].as_ints()
    return shape[0] if node.attributes.get_int("transB", 1) else shape[1]


def _initializer(node: ir.Node, index: int) -> Any:
    value = node.inputs[index]
    array = None if value is None else _array(value)
    if array is None:
        raise ModelError(f"node {node.name!r}: input {index} is no initializer")
    return array


def _array(value: ir.Value) -> Any:
    """An initializer's values; None if the value is none."""
    return None if value.const_value is None else tensor_array(value.const_value)
