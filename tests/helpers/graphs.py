"""Small ONNX models for tests, and the round trip through the compiler."""

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from tbn_compile.compiler import compile_model
from tbn_compile.reports import ModelReport

TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "float64": onnx.TensorProto.DOUBLE,
    "int64": onnx.TensorProto.INT64,
}
TOLERANCES = {"float32": 2e-5, "float16": 5e-3, "float64": 2e-5}


@dataclass
class GraphBuilder:
    """Collects nodes and initializers, then gives the model."""

    nodes: list = field(default_factory=list)
    initializers: list = field(default_factory=list)
    inputs: list = field(default_factory=list)

    def input(self, name, shape, dtype="float32"):
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[dtype], shape))
        return name

    def weight(self, name, array):
        self.initializers.append(tensor(array, name))
        return name

    def node(self, operator, inputs, output=None, outputs=1, **attributes):
        names = [output or f"{operator}_{len(self.nodes)}"]
        names += [f"{names[0]}_{extra}" for extra in range(1, outputs)]
        node = helper.make_node(operator, inputs, names, name=f"n_{names[0]}", **attributes)
        self.nodes.append(node)
        return names[0]

    def model(self, *outputs, opset=18, ir_version=10, dtype="float32", rank=None, functions=()):
        shape = None if rank is None else [None] * rank
        graph = helper.make_graph(
            self.nodes,
            "graph",
            self.inputs,
            [helper.make_tensor_value_info(name, TYPES[dtype], shape) for name in outputs],
            self.initializers,
        )
        imports = [helper.make_opsetid("", opset)]
        imports += [helper.make_opsetid(function.domain, 1) for function in functions]
        return helper.make_model(
            graph, opset_imports=imports, ir_version=ir_version, functions=functions
        )


def tensor(array, name):
    if array.dtype == ml_dtypes.bfloat16:
        return helper.make_tensor(
            name, onnx.TensorProto.BFLOAT16, array.shape, array.tobytes(), raw=True
        )
    return numpy_helper.from_array(array.copy(order="C"), name)


@dataclass
class Compiled:
    """What became of a model."""

    report: ModelReport
    model: onnx.ModelProto
    path: object

    @property
    def operators(self):
        """Operator types of the main graph in order; those of `ai.tbn` among them."""
        return [node.op_type for node in self.model.graph.node]

    @property
    def tiled(self):
        """The nodes of `ai.tbn`, those in subgraphs too."""
        return list(_tiled(self.model.graph))

    @property
    def reasons(self):
        return {layer.name: layer.reason for layer in self.report.layers if layer.reason}


def _tiled(graph):
    for node in graph.node:
        if node.domain == "ai.tbn":
            yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _tiled(attribute.g)


def attribute(node, name, default=None):
    for each in node.attribute:
        if each.name == name:
            return helper.get_attribute_value(each)
    return default


def compile_proto(model, folder, name="model.onnx", **save):
    """Save, compile for `ort`, check in full, and reload."""
    source = folder / name
    if isinstance(model, onnx.ModelProto):
        onnx.save(model, source, **save)
    else:
        source = model
    output = folder / f"{source.stem}.compiled.onnx"
    report = compile_model(source, output=output)
    onnx.checker.check_model(str(output), full_check=True)
    return Compiled(report, onnx.load(str(output)), output)


def run(model, feeds):
    """Run in stock ONNX Runtime, without optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def random_feeds(model, seed=0, sizes=None):
    """Standard normal activations; symbolic dimensions come from `sizes`, else they are 3."""
    rng = np.random.default_rng(seed)
    stored = {each.name for each in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        dims = [
            dim.dim_value if dim.HasField("dim_value") else (sizes or {}).get(dim.dim_param, 3)
            for dim in kind.shape.dim
        ]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if dtype == np.bool_:
            feeds[value.name] = np.array(True)
        else:
            feeds[value.name] = rng.standard_normal(dims).astype(dtype)
    return feeds


def assert_same_results(model, compiled, sizes=None, feeds=None):
    """Every output of stock ONNX Runtime, relative to the output's largest magnitude."""
    feeds = feeds or random_feeds(model, sizes=sizes)
    for expected, actual in zip(run(model, feeds), run(compiled.model, feeds), strict=True):
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        largest = max(float(np.abs(expected).max(initial=0)), 1e-6)
        error = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0)
        assert error <= TOLERANCES[expected.dtype.name] * largest


def compile_and_compare(model, folder, *, lowered, sizes=None):
    """Compile, expect so many lowered layers, and compare results."""
    compiled = compile_proto(model, folder)
    assert len(compiled.report.lowered) == lowered, compiled.reasons
    assert len(compiled.tiled) == lowered
    assert_same_results(model, compiled, sizes)
    return compiled
