"""Each pass alone: the graph before, the graph after, compared but for names."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.graphs import GraphBuilder
from helpers.weights import BFLOAT16, random_signs
from onnx import helper

from tbn_compile import operators
from tbn_compile.passes import onnx as passes
from tbn_compile.tile import TiledBinaryWeight, pack_bits

OPSET = 18
INFINITY = float("inf")
MATRIX = TiledBinaryWeight(pack_bits(random_signs(0, 512)), (32, 64), 512, np.float32([0.5]), 2048)
KERNEL = TiledBinaryWeight(
    pack_bits(random_signs(0, 288)), (16, 8, 3, 3), 288, np.float32([0.5]), 1152
)
BIAS = np.linspace(-1, 1, 32).astype(np.float32)


def apply(step, model):
    """The model after a pass, and whether the pass said that it changed something."""
    model = ir.from_proto(model)
    result = step(model)
    return ir.to_proto(result.model), result.modified


def canonical(model):
    """Operators, attributes, wiring and constants, with values numbered in order of appearance."""
    constants = {
        each.name: (tuple(each.dims), each.data_type, ir.from_proto(each).numpy().tobytes())
        for each in model.graph.initializer
    }
    numbers = {each.name: f"input {i}" for i, each in enumerate(model.graph.input)}
    nodes = []
    for node in model.graph.node:
        read = tuple(constants.get(name) or numbers.get(name, name) for name in node.input)
        for name in node.output:
            numbers[name] = f"value {len(numbers)}"
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        attributes = {
            name: value.SerializeToString() if hasattr(value, "SerializeToString") else value
            for name, value in attributes.items()
        }
        nodes.append((node.domain, node.op_type, read, sorted(attributes.items())))
    return nodes, [numbers[each.name] for each in model.graph.output]


def assert_becomes(step, before, after):
    actual, modified = apply(step, before)
    assert modified
    assert canonical(actual) == canonical(after)
    _, modified = apply(step, actual)
    assert not modified


def assert_stays(step, before):
    actual, modified = apply(step, before)
    assert not modified
    assert canonical(actual) == canonical(before)


def tiled(graph, x, weight, bias=None, output="y", name="n", **attributes):
    """A node of `ai.tbn` as the passes write it."""
    is_conv = len(weight.shape) > 2
    inputs = [
        x,
        graph.weight(f"{name}.tile", weight.bits),
        graph.weight(f"{name}.scale", weight.scale),
    ]
    if bias is not None:
        inputs.append(graph.weight(f"{name}.bias", bias))
    values = {
        **operators.weight_attributes(weight),
        "activation_min": -INFINITY,
        "activation_max": INFINITY,
    }
    if is_conv:
        defaults = {"dilations": [1, 1], "group": 1, "strides": [1, 1], "pads": [0, 0, 0, 0]}
        values.update(defaults)
    else:
        values["transB"] = int(weight.layout == "NK")
    values.update(attributes)
    operator = operators.CONV if is_conv else operators.GEMM
    return graph.node(operator, inputs, output, domain=operators.DOMAIN, **values)


def finder():
    return passes.TileFinder(OPSET)


def matrix_input(graph):
    return graph.input("x", [5, 64])


def image_input(graph):
    return graph.input("x", [1, 8, 9, 9])


def scaled_bias(graph_bias, factor):
    return (graph_bias * np.float32(factor)).astype(np.float32)


def test_lower_gemm():
    before = GraphBuilder()
    inputs = [
        before.input("x", [64, 5]),
        before.weight("w", MATRIX.expand()),
        before.weight("c", BIAS),
    ]
    before.node("Gemm", inputs, "y", transA=1, transB=1, alpha=2.0, beta=0.5)
    after = GraphBuilder()
    x = after.node("Transpose", [after.input("x", [64, 5])], perm=[1, 0])
    tiled(after, x, MATRIX.scaled(np.float32(2)), scaled_bias(BIAS, 0.5))
    assert_becomes(passes.LowerGemmPass(finder()), before.model("y"), after.model("y"))


def test_lower_gemm_with_another_addend():
    before = GraphBuilder()
    inputs = [matrix_input(before), before.weight("w", MATRIX.expand()), before.input("c", [5, 32])]
    before.node("Gemm", inputs, "y", transB=1)
    after = GraphBuilder()
    x, addend = matrix_input(after), after.input("c", [5, 32])
    after.node("Add", [tiled(after, x, MATRIX, output="product"), addend], "y")
    assert_becomes(passes.LowerGemmPass(finder()), before.model("y"), after.model("y"))


def test_lower_matmul():
    before = GraphBuilder()
    before.node("MatMul", [matrix_input(before), before.weight("w", MATRIX.expand().T)], "y")
    after = GraphBuilder()
    tiled(after, matrix_input(after), MATRIX)
    assert_becomes(passes.LowerMatMulPass(finder()), before.model("y"), after.model("y"))


@pytest.mark.parametrize("padding", [{"pads": [1, 0, 0, 1]}, {"auto_pad": "SAME_LOWER"}])
def test_lower_conv(padding):
    before = GraphBuilder()
    inputs = [
        image_input(before),
        before.weight("w", KERNEL.expand()),
        before.weight("b", BIAS[:16]),
    ]
    before.node("Conv", inputs, "y", strides=[2, 2], **padding)
    after = GraphBuilder()
    tiled(after, image_input(after), KERNEL, BIAS[:16], strides=[2, 2], **padding)
    expected = after.model("y")
    if "auto_pad" in padding:
        node = expected.graph.node[0]
        kept = [each for each in node.attribute if each.name != "pads"]
        del node.attribute[:]
        node.attribute.extend(kept)
    assert_becomes(passes.LowerConvPass(finder()), before.model("y"), expected)


def test_lower_bfloat16():
    """No stock kernel runs this on a CPU, so the graph itself is the evidence."""
    weight = TiledBinaryWeight(MATRIX.bits, (32, 64), 512, np.array([0.3], BFLOAT16), 2048)
    before = GraphBuilder()
    inputs = [before.input("x", [5, 64], "bfloat16"), before.weight("w", weight.expand())]
    before.node("Gemm", inputs, "y", transB=1)
    after = GraphBuilder()
    tiled(after, after.input("x", [5, 64], "bfloat16"), weight)
    step = passes.LowerGemmPass(finder())
    assert_becomes(step, before.model("y", dtype="bfloat16"), after.model("y", dtype="bfloat16"))


def test_fuse_bias():
    before = GraphBuilder()
    product = tiled(before, matrix_input(before), MATRIX, output="product")
    before.node("Add", [before.weight("b", BIAS), product], "y")
    after = GraphBuilder()
    tiled(after, matrix_input(after), MATRIX, BIAS)
    assert_becomes(passes.FuseBiasPass(OPSET), before.model("y"), after.model("y"))


def test_a_second_bias_is_not_fused():
    before = GraphBuilder()
    product = tiled(before, matrix_input(before), MATRIX, BIAS, output="product")
    before.node("Add", [product, before.weight("b", BIAS)], "y")
    assert_stays(passes.FuseBiasPass(OPSET), before.model("y"))


def test_a_bias_behind_a_clamp_is_not_fused():
    before = GraphBuilder()
    product = tiled(before, matrix_input(before), MATRIX, output="product", activation_min=0.0)
    before.node("Add", [product, before.weight("b", BIAS)], "y")
    assert_stays(passes.FuseBiasPass(OPSET), before.model("y"))


@pytest.mark.parametrize("step", [passes.FuseBiasPass(OPSET), passes.ShareTilesPass()])
def test_tiles_that_a_caller_may_override_are_not_touched(step):
    before = GraphBuilder()
    x = matrix_input(before)
    product = tiled(before, x, MATRIX, output="product")
    tiled(before, x, MATRIX, output="z", name="m")
    before.node("Add", [product, before.weight("b", BIAS)], "y")
    model = before.model("y", "z")
    for name in ("n.tile", "m.tile"):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, 2, [64]))
    assert_stays(step, model)


def test_fold_batch_norm():
    statistics = [np.full(16, value, np.float32) for value in (-2, 3, 0.5, 3.75)]
    before = GraphBuilder()
    value = tiled(before, image_input(before), KERNEL, BIAS[:16], output="value")
    names = [before.weight(str(i), each) for i, each in enumerate(statistics)]
    before.node("BatchNormalization", [value, *names], "y", epsilon=0.25)
    after = GraphBuilder()
    factor = np.full(16, -1, np.float32)
    bias = (3 - 0.5 * -1 + BIAS[:16].astype(np.float64) * -1).astype(np.float32)
    tiled(after, image_input(after), KERNEL.scaled(factor), bias)
    assert_becomes(passes.FoldBatchNormPass(OPSET), before.model("y"), after.model("y"))


def test_fuse_activation():
    before = GraphBuilder()
    value = tiled(before, matrix_input(before), MATRIX, output="value")
    value = before.node("Relu", [value])
    before.node("Clip", [value, "", before.weight("six", np.float32(6))], "y")
    after = GraphBuilder()
    tiled(after, matrix_input(after), MATRIX, activation_min=0.0, activation_max=6.0)
    assert_becomes(passes.FuseActivationPass(OPSET), before.model("y"), after.model("y"))


def test_share_tiles():
    tile = np.where(random_signs(4, 3072), 1, -1).astype(np.float32)
    fused = np.resize(tile, (96, 64))
    whole = TiledBinaryWeight(pack_bits(tile > 0), (48, 64), 3072, np.float32([1]), 3072)
    before, after = GraphBuilder(), GraphBuilder()
    x = matrix_input(before)
    step = passes.LowerGemmPass(finder())
    for index, rows in enumerate((fused[:40], fused[40:])):
        before.node("Gemm", [x, before.weight(f"w{index}", rows)], f"y{index}", transB=1)
    x = matrix_input(after)
    for index, (rows, offset) in enumerate(((40, 0), (56, 40 * 64))):
        weight = TiledBinaryWeight(
            whole.bits, (rows, 64), 3072, whole.scale, rows * 64, offset=offset
        )
        tiled(after, x, weight, output=f"y{index}", name=f"n{index}")
    lowered, _ = apply(step, before.model("y0", "y1"))
    assert_becomes(passes.ShareTilesPass(), lowered, after.model("y0", "y1"))


def test_add_function_bodies():
    before = GraphBuilder()
    tiled(before, matrix_input(before), MATRIX)
    model, modified = apply(passes.AddFunctionBodiesPass(), before.model("y", ir_version=7))
    assert modified
    assert [(each.domain, each.name) for each in model.functions] == [("ai.tbn", "TiledBinaryGemm")]
    assert {each.domain: each.version for each in model.opset_import}["ai.tbn"] == 1
    assert model.ir_version == 8
    _, modified = apply(passes.AddFunctionBodiesPass(), model)
    assert not modified


def test_a_body_that_is_not_ours_is_replaced():
    before = GraphBuilder()
    tiled(before, matrix_input(before), MATRIX)
    proto = before.model("y", ir_version=8)
    foreign = helper.make_function(
        "ai.tbn",
        "TiledBinaryGemm",
        ["X", "tile", "scale"],
        ["Y"],
        [helper.make_node("Identity", ["X"], ["Y"])],
        [helper.make_opsetid("", 18)],
        ["weight_shape", "tile_length", "scale_length"],
    )
    proto.functions.append(foreign)
    model, modified = apply(passes.AddFunctionBodiesPass(), proto)
    assert modified
    assert [node.op_type for node in model.functions[0].node][-1] == "Reshape"


def test_order_initializers():
    before = GraphBuilder()
    second, first = before.weight("second", BIAS), before.weight("first", BIAS + 1)
    value = before.node("Add", [before.input("x", [32]), first])
    before.node("Mul", [value, second], "y")
    model, modified = apply(passes.OrderInitializersPass(), before.model("y"))
    assert modified
    assert [each.name for each in model.graph.initializer] == ["first", "second"]
    _, modified = apply(passes.OrderInitializersPass(), model)
    assert not modified


def test_infer_shapes():
    before = GraphBuilder()
    shape = before.node("Shape", [matrix_input(before)])
    before.node("Reshape", [before.input("z", [320]), shape], "y")
    model, modified = apply(passes.InferShapesPass(), before.model("y", rank=2))
    assert modified
    dims = model.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [5, 64]


def test_infer_shapes_holds_no_long_vectors():
    """Data propagation would take one entry for each of the 2^31 elements."""
    before = GraphBuilder()
    flat = before.node("Identity", [before.input("x", [2**31 - 1])])
    before.node("Unsqueeze", [flat, before.weight("axis", np.array([0]))], "y")
    model, _ = apply(passes.InferShapesPass(), before.model("y", rank=2))
    dims = model.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 2**31 - 1]


def test_raise_opset_leaves_newer_models():
    before = GraphBuilder()
    before.node("Relu", [matrix_input(before)], "y")
    assert_stays(passes.RaiseOpsetPass(), before.model("y", opset=15))


def test_a_dense_weight_is_not_touched():
    before = GraphBuilder()
    dense = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    before.node("Gemm", [matrix_input(before), before.weight("w", dense)], "y", transB=1)
    assert_stays(passes.LowerGemmPass(finder()), before.model("y"))


def expand(x_shape, extents):
    graph = GraphBuilder()
    x = graph.input("x", x_shape)
    graph.node("Expand", [x, graph.weight("extents", np.int64(extents))], "y")
    return graph.model("y", rank=len(x_shape))


@pytest.mark.parametrize(
    ("x_shape", "extents", "repeats"),
    [
        (["n", 4, 1], [1, 4, 8], [1, 1, 8]),
        (["n", 4, 1], [1, 8], [1, 1, 8]),
        (["n", 1, 3], [1, 2, 1], [1, 2, 1]),
    ],
)
def test_replace_expand(x_shape, extents, repeats):
    after = GraphBuilder()
    counts = after.weight("repeats", np.int64(repeats))
    after.node("Tile", [after.input("x", x_shape), counts], "y")
    assert_becomes(passes.ReplaceExpandPass(), expand(x_shape, extents), after.model("y", rank=3))


def test_replace_expand_that_repeats_nothing():
    after = GraphBuilder()
    after.node("Identity", [after.input("x", ["n", 4])], "y")
    assert_becomes(passes.ReplaceExpandPass(), expand(["n", 4], [1, 1]), after.model("y", rank=2))


@pytest.mark.parametrize(
    ("x_shape", "extents"),
    [([2, 1], [2, 3]), (["n", 1], [2, 3]), (["n", 1], [5, 1, 3]), (["n", 4], [1, 3])],
)
def test_replace_expand_leaves_alone(x_shape, extents):
    assert_stays(passes.ReplaceExpandPass(), expand(x_shape, extents))
