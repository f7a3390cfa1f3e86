"""BatchNormalization, Relu and Clip after a tiled node."""

import numpy as np
import pytest
from helpers.graphs import GraphBuilder, attribute, compile_and_compare
from helpers.weights import tiled_array

RNG = np.random.default_rng(0)
KERNEL = tiled_array((16, 8, 3, 3), 288, 0.3)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def batch_norm(graph, value, channels, output=None, dtype="float32", **attributes):
    parameters = {
        "gamma": normal(channels),
        "beta": normal(channels),
        "mean": normal(channels),
        "variance": np.abs(normal(channels)) + np.float32(0.1),
    }
    names = [graph.weight(f"{value}_{key}", each.astype(dtype)) for key, each in parameters.items()]
    return graph.node("BatchNormalization", [value, *names], output, **attributes)


def conv(graph, output=None, kernel=KERNEL, bias=False, dtype="float32", **attributes):
    inputs = [
        graph.input("x", [2, kernel.shape[1], 9, 9], dtype),
        graph.weight("w", kernel.astype(dtype)),
    ]
    if bias:
        inputs.append(graph.weight("b", normal(kernel.shape[0]).astype(dtype)))
    return graph.node("Conv", inputs, output, **attributes)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_batch_normalization_joins_scale_and_bias(tmp_path, bias, epsilon):
    graph = GraphBuilder()
    batch_norm(graph, conv(graph, bias=bias), 16, "y", epsilon=epsilon)
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv"]
    (layer,) = compiled.report.lowered
    assert layer.scaling == "row"


def test_batch_normalization_in_half_precision(tmp_path):
    graph = GraphBuilder()
    batch_norm(graph, conv(graph, dtype="float16"), 16, "y", dtype="float16")
    compiled = compile_and_compare(graph.model("y", rank=4, dtype="float16"), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv"]


def test_batch_normalization_and_activation_chain(tmp_path):
    graph = GraphBuilder()
    value = batch_norm(graph, conv(graph), 16)
    value = graph.node("Relu", [value])
    value = graph.node("Clip", [value, "", graph.weight("six", np.float32(6))])
    graph.node("Relu", [value], "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv"]
    assert attribute(compiled.tiled[0], "activation_min") == 0
    assert attribute(compiled.tiled[0], "activation_max") == 6


def test_batch_normalization_after_an_activation_stays(tmp_path):
    graph = GraphBuilder()
    batch_norm(graph, graph.node("Relu", [conv(graph)]), 16, "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv", "BatchNormalization"]


def test_batch_normalization_after_a_matrix(tmp_path):
    graph = GraphBuilder()
    x, w = graph.input("x", [5, 64]), graph.weight("w", tiled_array((64, 32), 500))
    batch_norm(graph, graph.node("MatMul", [x, w]), 32, "y")
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm"]


def test_batch_normalization_over_the_second_of_three_axes_stays(tmp_path):
    graph = GraphBuilder()
    x, w = graph.input("x", [2, 5, 64]), graph.weight("w", tiled_array((64, 32), 500))
    batch_norm(graph, graph.node("MatMul", [x, w]), 5, "y")
    compiled = compile_and_compare(graph.model("y", rank=3), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm", "BatchNormalization"]


def test_batch_normalization_that_would_need_a_scale_per_few_weights_stays(tmp_path):
    """Per-tile scales meet per-row factors on runs of gcd(tile, row) = 4 weights."""
    kernel = tiled_array((32, 4, 3, 3), 4 * 61, np.repeat(np.linspace(1, 2, 5), 4 * 61)[:1152])
    graph = GraphBuilder()
    batch_norm(graph, conv(graph, kernel=kernel), 32, "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv", "BatchNormalization"]


def test_batch_normalization_joins_scales_per_tile_of_whole_rows(tmp_path):
    kernel = tiled_array((16, 8, 3, 3), 288, np.repeat(np.linspace(1, 2, 4), 288))
    graph = GraphBuilder()
    batch_norm(graph, conv(graph, kernel=kernel), 16, "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv"]


def test_batch_normalization_with_computed_parameters_stays(tmp_path):
    graph = GraphBuilder()
    value = conv(graph)
    names = [graph.input(name, [16]) for name in ("gamma", "beta", "mean")]
    variance = graph.node("Exp", [graph.input("log_variance", [16])])
    graph.node("BatchNormalization", [value, *names, variance], "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators[-1] == "BatchNormalization"


def test_batch_normalization_of_a_result_used_twice_stays(tmp_path):
    graph = GraphBuilder()
    value = conv(graph)
    batch_norm(graph, value, 16, "y")
    graph.node("Sigmoid", [value], "z")
    compiled = compile_and_compare(graph.model("y", "z", rank=4), tmp_path, lowered=1)
    assert sorted(compiled.operators) == ["BatchNormalization", "Sigmoid", "TiledBinaryConv"]


def test_a_zero_gamma_prunes_a_channel(tmp_path):
    graph = GraphBuilder()
    value = conv(graph)
    gamma = normal(16)
    gamma[3] = 0
    names = [
        graph.weight(str(i), each)
        for i, each in enumerate([gamma, normal(16), normal(16), np.abs(normal(16))])
    ]
    graph.node("BatchNormalization", [value, *names], "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv"]


@pytest.mark.parametrize("shape", [(16, 1, 1), (1, 16, 1, 1), (), (1,), (1, 1, 1, 1)])
def test_a_bias_is_added_to_channels(tmp_path, shape):
    graph = GraphBuilder()
    graph.node("Add", [conv(graph), graph.weight("c", normal(*shape))], "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv"]


@pytest.mark.parametrize(
    "shape",
    [
        (7,),
        (7, 7),
        (16, 7, 7),
        (16, 1, 7),
        (2, 1, 1, 1),
        (2, 16, 1, 1),
        (1, 1, 1, 1, 1),
        (1, 1, 16, 1, 1),
    ],
)
def test_other_addends_of_a_convolution_stay(tmp_path, shape):
    graph = GraphBuilder()
    graph.node("Add", [conv(graph), graph.weight("c", normal(*shape))], "y")
    compiled = compile_and_compare(graph.model("y", rank=max(4, len(shape))), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv", "Add"]


def clip(graph, value, lower, upper, output="y"):
    bounds = [
        "" if bound is None else graph.weight(f"{output}_{name}", np.float32(bound))
        for name, bound in (("lower", lower), ("upper", upper))
    ]
    return graph.node("Clip", [value, *bounds], output)


@pytest.mark.parametrize(
    ("lower", "upper"), [(0, 6), (None, 1), (-1, None), (None, None), (0.5, 0.5)]
)
def test_clip_becomes_the_clamp(tmp_path, lower, upper):
    graph = GraphBuilder()
    clip(graph, conv(graph), lower, upper)
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv"]


@pytest.mark.parametrize(
    "order",
    [("Relu", (-1, 2)), ((-1, 2), "Relu"), ((1, 2), (3, 4)), ((3, 4), (1, 2)), ((-3, -1), "Relu")],
)
def test_chains_of_clamps_are_joined_in_order(tmp_path, order):
    graph = GraphBuilder()
    value = conv(graph)
    for index, each in enumerate(order):
        output = "y" if index else "between"
        value = (
            graph.node("Relu", [value], output)
            if each == "Relu"
            else clip(graph, value, *each, output)
        )
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv"]


def test_clip_with_crossed_bounds_stays(tmp_path):
    graph = GraphBuilder()
    clip(graph, conv(graph), 2, 1)
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv", "Clip"]


def test_clip_with_a_computed_bound_stays(tmp_path):
    graph = GraphBuilder()
    graph.node("Clip", [conv(graph), graph.input("lower", [])], "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv", "Clip"]


def test_clip_of_another_value_by_the_result_stays(tmp_path):
    graph = GraphBuilder()
    x, w = graph.input("x", [64]), graph.weight("w", tiled_array((64, 1), 8))
    lower = graph.node(
        "Reshape", [graph.node("MatMul", [x, w]), graph.weight("s", np.zeros(0, np.int64))]
    )
    graph.node("Clip", [graph.input("z", [3]), lower], "y")
    compiled = compile_and_compare(graph.model("y", rank=1), tmp_path, lowered=1)
    assert compiled.operators[-1] == "Clip"


def test_half_precision_clip(tmp_path):
    graph = GraphBuilder()
    upper = graph.weight("upper", np.float16(0.1))
    graph.node("Clip", [conv(graph, dtype="float16"), "", upper], "y")
    compiled = compile_and_compare(graph.model("y", rank=4, dtype="float16"), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv"]
