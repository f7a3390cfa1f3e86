"""MatMul (+ Add) → TiledBinaryGemm."""

import numpy as np
import pytest
from helpers.graphs import GraphBuilder, attribute, compile_and_compare
from helpers.weights import tiled_array

WEIGHT = tiled_array((32, 64), 512, 0.3)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def matmul(graph, x_shape=(2, 5, 64), weight=None, output="y"):
    x = graph.input("x", list(x_shape))
    w = graph.weight("w", WEIGHT.T if weight is None else weight)
    return graph.node("MatMul", [x, w], output)


@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 5, 64), (2, 3, 5, 64), (0, 64), (2, 0, 64)])
def test_inputs_of_any_rank(tmp_path, shape):
    graph = GraphBuilder()
    matmul(graph, shape)
    compiled = compile_and_compare(graph.model("y", rank=len(shape)), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm"]


@pytest.mark.parametrize("shape", [("batch", 64), ("batch", "tokens", 64), (None, 7, 64)])
def test_dynamic_shapes(tmp_path, shape):
    graph = GraphBuilder()
    matmul(graph, shape)
    compile_and_compare(graph.model("y", rank=len(shape)), tmp_path, lowered=1)


def test_a_tile_along_columns(tmp_path):
    graph = GraphBuilder()
    matmul(graph, weight=tiled_array((64, 32), 500, 0.3))
    compiled = compile_and_compare(graph.model("y", rank=3), tmp_path, lowered=1)
    assert attribute(compiled.tiled[0], "transB") == 0


def test_a_weight_on_the_left_is_left_alone(tmp_path):
    graph = GraphBuilder()
    graph.node("MatMul", [graph.weight("w", WEIGHT), graph.input("x", [64, 3])], "y")
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=0)
    assert compiled.reasons == {
        "n_y": "the weight is the left operand; put it on the right, transposed"
    }


def test_two_activations_are_left_alone(tmp_path):
    graph = GraphBuilder()
    graph.node("MatMul", [graph.input("q", [3, 4]), graph.input("k", [4, 3])], "y")
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=0)
    assert compiled.reasons == {"n_y": "both operands are computed when the model runs"}


def test_a_stack_of_matrices_is_left_alone(tmp_path):
    graph = GraphBuilder()
    matmul(graph, (4, 5, 64), np.stack([WEIGHT.T] * 4))
    compiled = compile_and_compare(graph.model("y", rank=3), tmp_path, lowered=0)
    assert compiled.reasons == {"n_y": "the weight has 3 axes; only matrices are lowered"}


def test_a_vector_is_left_alone(tmp_path):
    graph = GraphBuilder()
    matmul(graph, weight=WEIGHT[0])
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=0)
    assert compiled.reasons == {"n_y": "the weight has 1 axes; only matrices are lowered"}


@pytest.mark.parametrize("shape", [(32,), (1, 32), (1, 1, 32), (), (1,), (1, 1)])
@pytest.mark.parametrize("first", [True, False])
def test_a_constant_row_is_fused_as_the_bias(tmp_path, shape, first):
    graph = GraphBuilder()
    product = matmul(graph, output="product")
    bias = graph.weight("b", normal(*shape))
    graph.node("Add", [bias, product] if first else [product, bias], "y")
    compiled = compile_and_compare(graph.model("y", rank=3), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm"]
    assert compiled.tiled[0].output == ["y"]


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 32), (5, 1), (5, 32), (2, 1, 1), (2, 5, 32), (4, 1, 1, 1)]
)
def test_other_constants_are_not_fused(tmp_path, shape):
    graph = GraphBuilder()
    product = matmul(graph, output="product")
    graph.node("Add", [product, graph.weight("b", normal(*shape))], "y")
    model = graph.model("y", rank=max(3, len(shape)))
    compiled = compile_and_compare(model, tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm", "Add"]


def test_a_bias_wider_than_one_output_is_not_fused(tmp_path):
    graph = GraphBuilder()
    product = matmul(graph, weight=tiled_array((64, 1), 8), output="product")
    graph.node("Add", [product, graph.weight("b", normal(7))], "y")
    compiled = compile_and_compare(graph.model("y", rank=3), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm", "Add"]


def test_a_bias_on_a_vector_product(tmp_path):
    graph = GraphBuilder()
    product = matmul(graph, (64,), output="product")
    graph.node("Add", [product, graph.weight("b", normal(1, 32))], "y")
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm", "Add"]


def test_a_computed_addend_is_not_fused(tmp_path):
    graph = GraphBuilder()
    product = matmul(graph, output="product")
    graph.node("Add", [product, graph.input("b", [32])], "y")
    compiled = compile_and_compare(graph.model("y", rank=3), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm", "Add"]


def test_a_product_that_is_used_twice_is_not_fused(tmp_path):
    graph = GraphBuilder()
    product = matmul(graph, output="product")
    graph.node("Add", [product, graph.weight("b", normal(32))], "y")
    graph.node("Relu", [product], "z")
    compiled = compile_and_compare(graph.model("y", "z", rank=3), tmp_path, lowered=1)
    assert sorted(compiled.operators) == ["Add", "Relu", "TiledBinaryGemm"]


def test_a_product_that_is_added_to_itself_is_not_fused(tmp_path):
    graph = GraphBuilder()
    product = matmul(graph, output="product")
    graph.node("Add", [product, product], "y")
    compiled = compile_and_compare(graph.model("y", rank=3), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm", "Add"]


def test_a_product_that_is_a_graph_output_is_not_fused(tmp_path):
    graph = GraphBuilder()
    product = matmul(graph, output="product")
    graph.node("Add", [product, graph.weight("b", normal(32))], "y")
    compiled = compile_and_compare(graph.model("product", "y", rank=3), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm", "Add"]


def test_a_bias_behind_an_activation_is_not_fused(tmp_path):
    graph = GraphBuilder()
    product = graph.node("Relu", [matmul(graph, output="product")])
    graph.node("Add", [product, graph.weight("b", normal(32))], "y")
    compiled = compile_and_compare(graph.model("y", rank=3), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm", "Add"]
