"""Graphs from ONNX Runtime's static quantiser: every layer is lowered between its Q and DQ."""

import numpy as np
import pytest
from helpers.graphs import GraphBuilder, attribute, compile_proto
from helpers.quantization import (
    quantize,
    quantized_example,
    run_unoptimized,
    with_float_weights,
    without_first_quantize,
)
from helpers.weights import tiled_array

AROUND = ["QuantizeLinear", "DequantizeLinear"]
MLP = [*AROUND, "TiledBinaryGemm", *AROUND, "TiledBinaryGemm", *AROUND]
CNN = [
    *AROUND,
    *(["TiledBinaryConv", *AROUND, "MaxPool", *AROUND] * 2),
    *("TiledBinaryConv", *AROUND, "Reshape", *AROUND, "TiledBinaryGemm", *AROUND),
]
RNG = np.random.default_rng(0)


def assert_lowered(model, folder, operators, x):
    """The operators in order, and the same results."""
    compiled = compile_proto(model, folder)
    assert compiled.operators == operators
    assert not compiled.reasons
    feeds = {model.graph.input[0].name: x}
    (expected,) = run_unoptimized(model, feeds)
    (actual,) = run_unoptimized(compiled.model, feeds)
    np.testing.assert_array_equal(actual, expected)
    return compiled


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("name", "operators"), [("mlp", MLP), ("cnn", CNN)])
def test_examples(name, operators, dtype, per_channel, tmp_path):
    model, images = quantized_example(name, dtype, per_channel=per_channel)
    compiled = assert_lowered(model, tmp_path, operators, images)
    # A bias behind DequantizeLinear(int32) is a constant like any other.
    assert all(len(node.input) == 4 for node in compiled.tiled)


def test_reuse_is_that_of_the_float_graph(tmp_path):
    model, _ = quantized_example("mlp", per_channel=True)
    first, second = compile_proto(model, tmp_path).tiled
    assert attribute(first, "tile_length") == 128 * 784 // 4
    assert attribute(second, "tile_length") == 10 * 128


def test_weights_left_float(tmp_path):
    model, images = quantized_example("mlp")
    assert_lowered(with_float_weights(model), tmp_path, MLP, images)


def test_integer_input(tmp_path):
    model, images = quantized_example("mlp", "uint8")
    integers = np.rint(images * 255).astype(np.uint8)
    assert_lowered(without_first_quantize(model), tmp_path, MLP[1:], integers)


@pytest.mark.parametrize("per_channel", [False, True])
def test_matmul(per_channel, tmp_path):
    graph = GraphBuilder()
    x = graph.input("x", [None, 3, 64])
    weight = graph.weight("w", tiled_array((64, 32), 512, 0.3))
    model = graph.model(graph.node("MatMul", [x, weight], "y"), rank=3)
    x = RNG.standard_normal((8, 3, 64)).astype(np.float32)
    quantized = quantize(model, x, per_channel=per_channel)
    assert_lowered(quantized, tmp_path, [*AROUND, "TiledBinaryGemm", *AROUND], x)
