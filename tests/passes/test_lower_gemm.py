"""Gemm → TiledBinaryGemm."""

import numpy as np
import pytest
from helpers.graphs import GraphBuilder, attribute, compile_and_compare, compile_proto
from helpers.weights import tiled_array


def gemm(weight, addend=None, *, addend_input=None, x_shape=(5, 64), **attributes):
    graph = GraphBuilder()
    inputs = [graph.input("x", list(x_shape)), graph.weight("w", weight)]
    if addend is not None:
        inputs.append(graph.weight("c", addend))
    if addend_input is not None:
        inputs.append(graph.input("c", list(addend_input)))
    graph.node("Gemm", inputs, "y", **attributes)
    return graph.model("y", rank=2)


WEIGHT = tiled_array((32, 64), 512, 0.3)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("transposed_weight", [0, 1])
@pytest.mark.parametrize("transposed_input", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5, -2.0])
def test_transposes_and_alpha(tmp_path, transposed_weight, transposed_input, alpha):
    model = gemm(
        WEIGHT if transposed_weight else np.ascontiguousarray(WEIGHT.T),
        normal(32),
        x_shape=(64, 5) if transposed_input else (5, 64),
        transA=transposed_input,
        transB=transposed_weight,
        alpha=alpha,
    )
    compiled = compile_and_compare(model, tmp_path, lowered=1)
    assert compiled.operators == ["Transpose"] * transposed_input + ["TiledBinaryGemm"]
    assert attribute(compiled.tiled[0], "transB") == 1
    assert attribute(compiled.tiled[0], "tile_length") == 512


def test_a_tile_along_columns_keeps_its_layout(tmp_path):
    model = gemm(tiled_array((64, 32), 300), transB=0)
    compiled = compile_and_compare(model, tmp_path, lowered=1)
    assert attribute(compiled.tiled[0], "transB") == 0
    assert attribute(compiled.tiled[0], "weight_shape") == [64, 32]


@pytest.mark.parametrize("beta", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("shape", [(32,), (1, 32), (), (1,), (1, 1)])
def test_a_constant_row_becomes_the_bias(tmp_path, shape, beta):
    model = gemm(WEIGHT, normal(*shape), transB=1, beta=beta)
    compiled = compile_and_compare(model, tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm"]
    assert len(compiled.tiled[0].input) == 4


@pytest.mark.parametrize("beta", [1.0, 0.25])
@pytest.mark.parametrize("shape", [(5, 32), (5, 1)])
def test_any_other_constant_is_added_afterwards(tmp_path, shape, beta):
    model = gemm(WEIGHT, normal(*shape), transB=1, beta=beta)
    compiled = compile_and_compare(model, tmp_path, lowered=1)
    assert compiled.operators[-1] == "Add"
    assert len(compiled.tiled[0].input) == 3


@pytest.mark.parametrize("shape", [(5, 32), (32,), (1, 1), (5, 1)])
@pytest.mark.parametrize("beta", [1.0, -0.5])
def test_a_computed_addend_is_added_afterwards(tmp_path, shape, beta):
    model = gemm(WEIGHT, addend_input=shape, transB=1, beta=beta)
    compiled = compile_and_compare(model, tmp_path, lowered=1)
    assert compiled.operators[-1] == "Add"


def test_as_many_inputs_as_outputs_do_not_confuse_rows_and_columns(tmp_path):
    square = tiled_array((16, 16), 64)
    model = gemm(square, normal(16, 1), transB=1, x_shape=(16, 16))
    compiled = compile_and_compare(model, tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm", "Add"]


def test_half_precision(tmp_path):
    kind, graph = "float16", GraphBuilder()
    inputs = [
        graph.input("x", [5, 64], kind),
        graph.weight("w", WEIGHT.astype(kind)),
        graph.weight("c", normal(32).astype(kind)),
    ]
    graph.node("Gemm", inputs, "y", transB=1, alpha=0.5, beta=2.0)
    compile_and_compare(graph.model("y", dtype=kind, rank=2), tmp_path, lowered=1)


def test_double_precision_is_left_alone(tmp_path):
    graph = GraphBuilder()
    inputs = [graph.input("x", [5, 64], "float64"), graph.weight("w", WEIGHT.astype(np.float64))]
    graph.node("Gemm", inputs, "y", transB=1)
    compiled = compile_and_compare(graph.model("y", dtype="float64", rank=2), tmp_path, lowered=0)
    assert compiled.reasons == {
        "n_y": "weights are float64; only float32, float16 and bfloat16 are lowered"
    }


def test_a_dense_weight_is_left_alone_with_the_reason(tmp_path):
    compiled = compile_and_compare(gemm(normal(32, 64), transB=1), tmp_path, lowered=0)
    assert compiled.reasons == {"n_y": "magnitudes differ: 2048 values in the first 2048"}
    assert compiled.operators == ["Gemm"]


def test_an_alpha_that_overflows_half_precision_is_not_folded(tmp_path):
    graph = GraphBuilder()
    inputs = [
        graph.input("x", [5, 64], "float16"),
        graph.weight("w", (WEIGHT * 1000).astype(np.float16)),
    ]
    graph.node("Gemm", inputs, "y", transB=1, alpha=1000.0)
    compiled = compile_proto(graph.model("y", dtype="float16", rank=2), tmp_path)
    assert compiled.reasons == {
        "n_y": "alpha cannot join the scale: a scale of 300000 does not fit float16"
    }
