"""Compiled models through TVM against ONNX Runtime on the original graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from helpers.graphs import GraphBuilder, compile_proto, random_feeds
from helpers.graphs import run as run_reference
from helpers.relax_calls import operators
from helpers.weights import tiled_array
from relax_modules import run
from tvm.relax.frontend.onnx import from_onnx

from tbn_compile.compiler import compile_model
from tbn_compile.passes.relax import (
    CONV,
    GEMM,
    FoldBatchNorm,
    FuseActivation,
    FuseAffine,
    FuseResidual,
    LowerTiledCalls,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/fashion_mnist"
FUSE = tvm.transform.Sequential(
    [FoldBatchNorm(), FuseAffine(), FuseResidual(), FuseActivation(), LowerTiledCalls()]
)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("batch", [1, 3])
def test_examples(name, batch, tmp_path):
    source, output = EXAMPLES / f"{name}.onnx", tmp_path / "model.tbn.onnx"
    compile_model(source, output=output)
    original = onnx.load(source)
    (symbol,) = {
        dim.dim_param for dim in original.graph.input[0].type.tensor_type.shape.dim if dim.dim_param
    }
    assert_same(original, onnx.load(output), {symbol: batch})


def residual_block():
    graph = GraphBuilder()
    x = graph.input("x", ["batch", 8, 6, 6])
    first = graph.weight("w1", tiled_array((8, 8, 3, 3), 144, 0.5, seed=1))
    second = graph.weight("w2", tiled_array((8, 8, 3, 3), 288, 0.25, seed=2))
    dense = graph.weight("w3", np.random.default_rng(0).standard_normal((4, 8, 1, 1), np.float32))
    y = graph.node("Relu", [graph.node("Conv", [x, first], pads=[1, 1, 1, 1])])
    z = graph.node("Conv", [y, second], pads=[1, 1, 1, 1])
    joined = graph.node("Relu", [graph.node("Add", [z, x])])
    return graph.model(graph.node("Conv", [joined, dense], "out"), rank=4), {CONV: 2}


def attention_block():
    graph = GraphBuilder()
    x = graph.input("x", [2, 5, 16])
    heads = graph.weight("heads", np.array([2, 5, 2, 8], np.int64))
    merged = graph.weight("merged", np.array([2, 5, 16], np.int64))
    root = graph.weight("root", np.array(8**0.5, np.float32))
    ones = graph.weight("ones", np.ones(16, np.float32))
    zeros = graph.weight("zeros", np.zeros(16, np.float32))
    normal = graph.node("LayerNormalization", [x, ones, zeros])

    def project(source, seed, output=None):
        weight = graph.weight(f"w{seed}", tiled_array((16, 16), 64, 0.2, seed=seed))
        return graph.node("MatMul", [source, weight], output)

    def split(value, order):
        return graph.node("Transpose", [graph.node("Reshape", [value, heads])], perm=order)

    query, value = (split(project(normal, seed), [0, 2, 1, 3]) for seed in (1, 2))
    key = split(project(normal, 3), [0, 2, 3, 1])
    scores = graph.node("Softmax", [graph.node("Div", [graph.node("MatMul", [query, key]), root])])
    mixed = graph.node("Transpose", [graph.node("MatMul", [scores, value])], perm=[0, 2, 1, 3])
    out = project(graph.node("Reshape", [mixed, merged]), 4)
    return graph.model(graph.node("Add", [out, x], "out"), rank=3), {GEMM: 4}


@pytest.mark.parametrize("make", [residual_block, attention_block])
def test_tiled_and_ordinary_nodes(make, tmp_path):
    original, expected = make()
    compiled = compile_proto(original, tmp_path).model
    module = from_onnx(compiled)
    assert {name: operators(module).count(name) for name in expected} == expected
    assert_same(original, compiled, {"batch": 2})
    fused = FUSE(module)
    assert "relax.add" not in operators(fused)
    assert_close(run(fused, *random_feeds(original, sizes={"batch": 2}).values()), original)


def assert_same(original, compiled, sizes):
    feeds = random_feeds(original, sizes=sizes)
    assert_close(run(from_onnx(compiled), *feeds.values()), original, sizes)


def assert_close(actual, original, sizes=None):
    (expected,) = run_reference(original, random_feeds(original, sizes=sizes or {"batch": 2}))
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()
