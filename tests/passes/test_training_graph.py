"""The graph that trains a tile, exported as it is: latent scores in, tile and scales out."""

import numpy as np
import pytest
from helpers.graphs import GraphBuilder, compile_and_compare
from onnx import numpy_helper

RNG = np.random.default_rng(0)
OUTPUTS, INPUTS, TILES = 32, 64, 4
LENGTH = OUTPUTS * INPUTS // TILES
SCORES = RNG.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
SECOND = RNG.standard_normal((OUTPUTS, INPUTS)).astype(np.float32)


def tensor(values, dtype):
    return numpy_helper.from_array(np.array(values, dtype))


class Latent(GraphBuilder):
    """Nodes from latent scores to a weight."""

    def ints(self, *values):
        return self.weight(f"ints_{len(self.initializers)}", np.array(values, np.int64))

    def float(self, value):
        return self.weight(f"float_{len(self.initializers)}", np.float32(value))

    def sums(self):
        """[1, q]: the sum of the scores at each place of the tile."""
        grid = self.node("Reshape", [self.weight("scores", SCORES), self.ints(TILES, LENGTH)])
        return self.node("ReduceSum", [grid, self.ints(0)], keepdims=1)

    def sums_flat(self):
        grid = self.node("Reshape", [self.weight("scores", SCORES), self.ints(TILES, -1)])
        return self.node("ReduceSum", [grid, self.ints(0)], keepdims=0)

    # --- signs ---

    def where_greater(self, sums):
        positive = self.node("Greater", [sums, self.float(0)])
        return self.node("Where", [positive, self.float(1), self.float(-1)])

    def where_less_or_equal(self, sums):
        negative = self.node("LessOrEqual", [sums, self.float(0)])
        return self.node("Where", [negative, self.float(-1), self.float(1)])

    def sign(self, sums):
        return self.node("Sign", [sums])

    def cast_compare(self, sums):
        bits = self.node("Cast", [self.node("Greater", [sums, self.float(0)])], to=1)
        return self.node("Sub", [self.node("Mul", [bits, self.float(2)]), self.float(1)])

    def straight_through(self, sums):
        """scores + stop_gradient(sign - scores), which some exporters keep."""
        hard = self.where_greater(sums)
        return self.node("Identity", [hard])

    # --- repeats ---

    def tile(self, tile):
        flat = self.node("Reshape", [tile, self.ints(-1)])
        return self.node("Tile", [flat, self.ints(TILES)])

    def expand(self, tile):
        row = self.node("Reshape", [tile, self.ints(1, LENGTH)])
        return self.node("Expand", [row, self.ints(TILES, LENGTH)])

    def expand_by_shape(self, tile):
        """As torch exports it: the shape is computed from pieces."""
        count = self.node("Constant", [], value_ints=[TILES])
        length = self.node("Shape", [self.node("Reshape", [tile, self.ints(-1)])])
        shape = self.node("Concat", [count, length], axis=0)
        return self.node(
            "Expand",
            [
                self.node("Unsqueeze", [self.node("Reshape", [tile, self.ints(-1)]), self.ints(0)]),
                shape,
            ],
        )

    def expand_from_script(self, tile):
        """As the TorchScript exporter writes it: every -1 of the shape is replaced by 1."""
        shape = self.ints(TILES, LENGTH)
        ones = self.node("ConstantOfShape", [self.ints(2)], value=tensor([1], np.int64))
        kept = self.node("Equal", [shape, self.node("Mul", [ones, self.ints(-1)])])
        row = self.node("Reshape", [tile, self.ints(1, LENGTH)])
        return self.node("Expand", [row, self.node("Where", [kept, ones, shape])])

    def concat(self, tile):
        row = self.node("Reshape", [tile, self.ints(1, LENGTH)])
        return self.node("Concat", [row] * TILES, axis=0)

    # --- scales ---

    def per_layer_mean(self, signs):
        magnitudes = self.node("Abs", [self.weight("second", SECOND)])
        scale = self.node("ReduceMean", [magnitudes], keepdims=0)
        weight = self.node("Reshape", [signs, self.ints(OUTPUTS, INPUTS)])
        return self.node("Mul", [weight, scale])

    def per_layer_sum(self, signs):
        magnitudes = self.node("ReduceL1", ["scores"], keepdims=1)
        scale = self.node("Div", [magnitudes, self.float(SCORES.size)])
        weight = self.node("Reshape", [signs, self.ints(OUTPUTS, INPUTS)])
        return self.node("Mul", [scale, weight])

    def per_tile(self, signs):
        grid = self.node("Reshape", [self.weight("second", SECOND), self.ints(TILES, LENGTH)])
        total = self.node("ReduceSum", [self.node("Abs", [grid]), self.ints(1)], keepdims=1)
        scale = self.node("Div", [total, self.float(LENGTH)])
        grid = self.node("Reshape", [signs, self.ints(TILES, LENGTH)])
        return self.node("Reshape", [self.node("Mul", [grid, scale]), self.ints(OUTPUTS, INPUTS)])

    def per_row(self, signs):
        scale = self.node(
            "ReduceMean",
            [self.node("Abs", [self.weight("second", SECOND)]), self.ints(1)],
            keepdims=1,
        )
        weight = self.node("Reshape", [signs, self.ints(OUTPUTS, INPUTS)])
        return self.node("Mul", [weight, scale])

    def no_scale(self, signs):
        return self.node("Reshape", [signs, self.ints(OUTPUTS, INPUTS)])


SIGNS = ["where_greater", "where_less_or_equal", "sign", "cast_compare", "straight_through"]
REPEATS = ["tile", "expand", "expand_by_shape", "expand_from_script", "concat"]
SCALES = {
    "per_layer_mean": "layer",
    "per_layer_sum": "layer",
    "per_tile": "tile",
    "per_row": "row",
    "no_scale": "layer",
}


def assert_folded(compiled):
    """The tile is stored, and neither latent weights nor the nodes that read them are left."""
    (layer,) = compiled.report.lowered
    assert layer.tiles == TILES
    assert set(compiled.operators) <= {"TiledBinaryGemm", "TiledBinaryConv"}
    stored = {each.name for each in compiled.model.graph.initializer}
    assert not stored & {"scores", "second"}
    assert compiled.path.stat().st_size < SCORES.nbytes + 8000
    assert (
        sum(len(each.raw_data) for each in compiled.model.graph.initializer)
        <= LENGTH // 8 + 4 * OUTPUTS + 4 * OUTPUTS
    )
    return layer


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("sign", SIGNS)
def test_every_spelling_of_a_dense_layer(tmp_path, sign, repeat, scale):
    graph = Latent()
    tile = getattr(graph, sign)(graph.sums())
    weight = getattr(graph, scale)(getattr(graph, repeat)(tile))
    graph.node("Gemm", [graph.input("x", [5, INPUTS]), weight], "y", transB=1)
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=1)
    assert assert_folded(compiled).scaling == SCALES[scale]


@pytest.mark.parametrize("sums", ["sums", "sums_flat"])
def test_torch_writes_a_transpose_before_a_product_of_three_axes(tmp_path, sums):
    graph = Latent()
    tile = graph.where_greater(getattr(graph, sums)())
    weight = graph.per_tile(graph.expand(tile))
    transposed = graph.node("Transpose", [weight], perm=[1, 0])
    product = graph.node("MatMul", [graph.input("x", [2, 5, INPUTS]), transposed])
    graph.node("Add", [product, graph.weight("bias", SECOND[:, 0])], "y")
    compiled = compile_and_compare(graph.model("y", rank=3), tmp_path, lowered=1)
    assert_folded(compiled)


def test_a_convolution(tmp_path):
    graph = Latent()
    flat = graph.per_tile(graph.tile(graph.where_greater(graph.sums())))
    kernel = graph.node("Reshape", [flat, graph.ints(OUTPUTS, INPUTS // 4, 2, 2)])
    value = graph.node(
        "Conv", [graph.input("x", [2, INPUTS // 4, 9, 9]), kernel], pads=[1, 0, 0, 1]
    )
    statistics = [
        graph.weight(f"statistic_{i}", np.abs(SECOND[:, i]) + np.float32(0.1)) for i in range(4)
    ]
    value = graph.node("BatchNormalization", [value, *statistics])
    graph.node("Relu", [value], "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryConv"]
    assert_folded(compiled)


def test_a_plain_binary_layer(tmp_path):
    """p = 1, as layers below the threshold are trained."""
    graph = Latent()
    signs = graph.where_greater(graph.weight("scores", SCORES))
    weight = graph.per_layer_mean(signs)
    graph.node("Gemm", [graph.input("x", [5, INPUTS]), weight], "y", transB=1)
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=1)
    (layer,) = compiled.report.lowered
    assert (layer.tiles, layer.scaling) == (1.0, "layer")
    assert not {each.name for each in compiled.model.graph.initializer} & {"scores", "second"}


def test_latent_scores_that_a_caller_may_override_are_left_alone(tmp_path):
    graph = Latent()
    weight = graph.per_layer_sum(graph.tile(graph.where_greater(graph.sums())))
    graph.input("scores", [OUTPUTS, INPUTS])
    graph.node("Gemm", [graph.input("x", [5, INPUTS]), weight], "y", transB=1)
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=0)
    assert "depends on 'scores', which is also a graph input" in compiled.reasons["n_y"]


def test_two_layers_that_train_one_tile_share_it(tmp_path):
    graph = Latent()
    weight = graph.per_layer_sum(graph.tile(graph.where_greater(graph.sums())))
    x = graph.input("x", [5, INPUTS])
    graph.node("Gemm", [x, weight], "y", transB=1)
    graph.node("Gemm", [graph.node("Relu", [x]), weight], "z", transB=1)
    compiled = compile_and_compare(graph.model("y", "z", rank=2), tmp_path, lowered=2)
    assert len(compiled.model.graph.initializer) == 2
