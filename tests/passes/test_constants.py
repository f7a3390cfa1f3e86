"""Where weights come from: constant expressions, subgraphs, functions, external data."""

import numpy as np
import onnx
import pytest
from helpers.graphs import (
    GraphBuilder,
    assert_same_results,
    compile_and_compare,
    compile_proto,
    random_feeds,
    run,
)
from helpers.weights import BFLOAT16, tiled_array
from onnx import helper, numpy_helper

WEIGHT = tiled_array((32, 64), 512, 0.3)
RNG = np.random.default_rng(0)


def ints(graph, *values):
    return graph.weight(f"ints_{len(graph.initializers)}", np.array(values, np.int64))


def product(graph, weight, x_shape=(5, 64), dtype="float32"):
    """y = x · weightᵀ for a value that holds WEIGHT."""
    return graph.node("Gemm", [graph.input("x", list(x_shape), dtype), weight], "y", transB=1)


def constant(graph, array):
    return graph.node("Constant", [], value=numpy_helper.from_array(array))


def _transposed(graph):
    return graph.node("Transpose", [graph.weight("w", np.ascontiguousarray(WEIGHT.T))], perm=[1, 0])


def _cast(graph):
    return graph.node("Cast", [graph.weight("w", WEIGHT.astype(np.float16))], to=1)


def _cast_from_double(graph):
    return graph.node("Cast", [graph.weight("w", WEIGHT.astype(np.float64))], to=1)


def _cast_from_bfloat16(graph):
    return graph.node("Cast", [graph.weight("w", WEIGHT.astype(BFLOAT16))], to=1)


def _reshaped(graph):
    return graph.node("Reshape", [graph.weight("w", WEIGHT.reshape(-1)), ints(graph, 32, 64)])


def _identities(graph):
    return graph.node("Identity", [graph.node("Identity", [graph.weight("w", WEIGHT)])])


def _long_chain(graph):
    value = graph.weight("w", np.ascontiguousarray(WEIGHT.T).astype(np.float16))
    value = graph.node("Transpose", [graph.node("Identity", [value])])
    value = graph.node("Reshape", [graph.node("Cast", [value], to=1), ints(graph, -1)])
    return graph.node("Reshape", [value, constant(graph, np.array([32, 64]))])


def _constant(graph):
    return constant(graph, WEIGHT)


def _constant_floats(graph):
    flat = graph.node("Constant", [], value_floats=WEIGHT.reshape(-1).tolist())
    return graph.node("Reshape", [flat, graph.node("Constant", [], value_ints=[32, 64])])


def _squeezed(graph):
    value = graph.weight("w", WEIGHT.reshape(1, 32, 64))
    return graph.node("Squeeze", [value, ints(graph, 0)])


def _sliced(graph):
    whole = graph.weight(
        "w", np.concatenate([WEIGHT, RNG.standard_normal((8, 64))]).astype(np.float32)
    )
    return graph.node("Slice", [whole, ints(graph, 0), ints(graph, 32), ints(graph, 0)])


def _split(graph):
    whole = graph.weight("w", np.concatenate([WEIGHT, WEIGHT]))
    return graph.node("Split", [whole, ints(graph, 32, 32)], outputs=2, axis=0)


def _dequantised(graph):
    scale = graph.weight("s", np.float32(0.3))
    signs = graph.weight("w", np.where(WEIGHT > 0, 1, -1).astype(np.int8))
    return graph.node("DequantizeLinear", [signs, scale])


SOURCES = [
    _transposed, _cast, _cast_from_double, _cast_from_bfloat16, _reshaped, _identities, _long_chain,
    _constant, _constant_floats, _squeezed, _sliced, _split, _dequantised,
]  # fmt: skip


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__.strip("_"))
def test_weights_behind_constant_expressions(tmp_path, source):
    graph = GraphBuilder()
    product(graph, source(graph))
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=1)
    assert compiled.operators == ["TiledBinaryGemm"]
    assert sum(len(each.raw_data) for each in compiled.model.graph.initializer) < 100


def test_a_shared_weight_is_stored_once(tmp_path):
    graph = GraphBuilder()
    w, x = graph.weight("w", WEIGHT), graph.input("x", [5, 64])
    graph.node("Gemm", [x, w], "y", transB=1)
    graph.node("Gemm", [graph.node("Relu", [x]), w], "z", transB=1)
    compiled = compile_and_compare(graph.model("y", "z", rank=2), tmp_path, lowered=2)
    assert len(compiled.model.graph.initializer) == 2
    assert [layer.stored_bytes > 60 for layer in compiled.report.lowered] == [True, False]


def test_a_weight_shared_as_it_is_and_transposed(tmp_path):
    square = tiled_array((64, 64), 512, 0.3)
    graph = GraphBuilder()
    w, x = graph.weight("w", square), graph.input("x", [5, 64])
    graph.node("Gemm", [x, w], "y", transB=1)
    graph.node("MatMul", [x, w], "z")
    compile_and_compare(graph.model("y", "z", rank=2), tmp_path, lowered=2)


def test_a_weight_that_another_node_reads_too_stays_in_the_file(tmp_path):
    graph = GraphBuilder()
    w = graph.weight("w", WEIGHT)
    product(graph, w)
    graph.node("Gather", [w, graph.input("index", [3], "int64")], "z", axis=0)
    model = graph.model("y", "z", rank=2)
    compiled = compile_proto(model, tmp_path)
    assert compiled.operators == ["TiledBinaryGemm", "Gather"]
    feeds = {**random_feeds(model), "index": np.array([0, 5, 31])}
    assert_same_results(model, compiled, feeds=feeds)


def test_overridable_weights_are_left_alone(tmp_path):
    graph = GraphBuilder()
    product(graph, graph.weight("w", WEIGHT))
    graph.input("w", [32, 64])
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=0)
    assert compiled.reasons == {
        "n_y": "the weight is also a graph input, which callers may override; "
        "remove it from the inputs"
    }


def test_expressions_over_overridable_weights_are_left_alone(tmp_path):
    graph = GraphBuilder()
    weight = graph.node("Identity", [graph.weight("w", WEIGHT)])
    product(graph, weight)
    graph.input("w", [32, 64])
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=0)
    assert "override" in compiled.reasons["n_y"]


def test_before_version_4_the_inputs_list_every_weight(tmp_path):
    """IR version 3 has no overriding: each initializer must be an input as well."""
    graph = GraphBuilder()
    product(graph, graph.weight("w", WEIGHT))
    graph.input("w", [32, 64])
    model = graph.model("y", rank=2, ir_version=3, opset=9)
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(helper.make_attribute("transB", 1))
    model.graph.node[0].input.append("c")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(32, np.float32), "c"))
    model.graph.input.append(helper.make_tensor_value_info("c", 1, [32]))
    compiled = compile_and_compare(model, tmp_path, lowered=1)
    assert [each.name for each in compiled.model.graph.input] == ["x"]
    assert compiled.model.ir_version >= 8


def test_random_weights_are_not_constant(tmp_path):
    graph = GraphBuilder()
    product(graph, graph.node("RandomNormal", [], shape=[32, 64]))
    compiled = compile_proto(graph.model("y", rank=2), tmp_path)
    assert compiled.reasons == {"n_y": "the weight is computed by RandomNormal when the model runs"}


def test_computed_weights_are_left_alone(tmp_path):
    graph = GraphBuilder()
    product(graph, graph.node("Sign", [graph.input("w", [32, 64])]))
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=0)
    assert compiled.reasons == {"n_y": "the weight depends on 'w', which is a graph input"}


# --- subgraphs -----------------------------------------------------------------------------------


def _branches(then_weight, else_weight, outer):
    def branch(name, weight):
        initializers = [] if outer else [numpy_helper.from_array(weight, f"{name}_w")]
        node = helper.make_node("Gemm", ["x", f"{name}_w"], [f"{name}_y"], transB=1, name=name)
        output = helper.make_tensor_value_info(f"{name}_y", 1, [None, 32])
        return helper.make_graph([node], name, [], [output], initializers)

    graph = GraphBuilder()
    condition = graph.inputs.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    del condition
    graph.input("x", [5, 64])
    if outer:
        graph.weight("then_w", then_weight)
        graph.weight("else_w", else_weight)
    graph.node(
        "If",
        ["c"],
        "y",
        then_branch=branch("then", then_weight),
        else_branch=branch("else", else_weight),
    )
    return graph.model("y", rank=2)


@pytest.mark.parametrize("outer", [False, True])
def test_weights_in_branches_and_from_the_outer_scope(tmp_path, outer):
    model = _branches(WEIGHT, tiled_array((32, 64), 256, 0.7, seed=3), outer)
    compiled = compile_proto(model, tmp_path)
    assert len(compiled.tiled) == 2
    x = RNG.standard_normal((5, 64)).astype(np.float32)
    for condition in (True, False):
        assert_same_results(model, compiled, feeds={"x": x, "c": np.array(condition)})


@pytest.mark.parametrize("inner", [False, True])
def test_weights_in_loops(tmp_path, inner):
    square = tiled_array((32, 32), 256, 0.1)
    value_info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["keep_in"], ["keep"]),
            helper.make_node("MatMul", ["state", "w"], ["p"], name="product"),
            helper.make_node("Add", ["p", "b"], ["q"]),
            helper.make_node("Relu", ["q"], ["next"]),
        ],
        "body",
        [value_info("i", 7, []), value_info("keep_in", 9, []), value_info("state", 1, [5, 32])],
        [value_info("keep", 9, []), value_info("next", 1, [5, 32])],
        [numpy_helper.from_array(square, "w")] if inner else [],
    )
    graph = GraphBuilder()
    graph.input("x", [5, 32])
    graph.weight("b", RNG.standard_normal(32).astype(np.float32))
    graph.weight("count", np.array(3))
    if not inner:
        graph.weight("w", square)
    graph.node("Loop", ["count", "", "x"], "y", body=body)
    compiled = compile_and_compare(graph.model("y", rank=2), tmp_path, lowered=1)
    body = next(a.g for a in compiled.model.graph.node[0].attribute if a.name == "body")
    assert [node.op_type for node in body.node] == ["Identity", "TiledBinaryGemm"]


def test_a_loop_carried_weight_is_left_alone(tmp_path):
    value_info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["keep_in"], ["keep"]),
            helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
            helper.make_node("Neg", ["w"], ["next"]),
        ],
        "body",
        [value_info("i", 7, []), value_info("keep_in", 9, []), value_info("w", 1, [64, 32])],
        [value_info("keep", 9, []), value_info("next", 1, [64, 32]), value_info("p", 1, [5, 32])],
    )
    graph = GraphBuilder()
    graph.input("x", [5, 64])
    graph.weight("count", np.array(2))
    graph.node(
        "Loop",
        ["count", "", graph.weight("w0", np.ascontiguousarray(WEIGHT.T))],
        "w1",
        outputs=2,
        body=body,
    )
    model = graph.model("w1_1", rank=3)
    compile_and_compare(model, tmp_path, lowered=0)


# --- functions -----------------------------------------------------------------------------------


def test_local_functions_are_inlined(tmp_path):
    function = helper.make_function(
        "custom",
        "Linear",
        ["x", "w", "b"],
        ["y"],
        [
            helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "wt"], ["p"]),
            helper.make_node("Add", ["p", "b"], ["y"]),
        ],
        [helper.make_opsetid("", 18)],
    )
    graph = GraphBuilder()
    x, b = graph.input("x", [5, 64]), graph.weight("b", RNG.standard_normal(32).astype(np.float32))
    for index, output in enumerate(("y", "z")):
        weight = graph.weight(output + "w", tiled_array((32, 64), 512, 0.3, seed=index))
        graph.node("Linear", [x, weight, b], output, domain="custom")
    model = graph.model("y", "z", rank=2, functions=[function])
    compiled = compile_and_compare(model, tmp_path, lowered=2)
    assert compiled.operators == ["TiledBinaryGemm"] * 2
    assert {(f.domain, f.name) for f in compiled.model.functions} == {("ai.tbn", "TiledBinaryGemm")}


# --- external data -------------------------------------------------------------------------------


def test_external_data(tmp_path):
    graph = GraphBuilder()
    product(graph, graph.weight("w", WEIGHT))
    model = graph.model("y", rank=2)
    compiled = compile_proto(
        onnx.ModelProto.FromString(model.SerializeToString()),
        tmp_path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert len(compiled.tiled) == 1
    assert_same_results(model, compiled)


def test_external_data_of_a_layer_left_alone_is_embedded(tmp_path):
    graph = GraphBuilder()
    product(graph, graph.weight("w", RNG.standard_normal((32, 64)).astype(np.float32)))
    model = graph.model("y", rank=2)
    (tmp_path / "in").mkdir()
    compiled = compile_proto(
        onnx.ModelProto.FromString(model.SerializeToString()),
        tmp_path / "in",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    compiled.path.rename(tmp_path / "moved.onnx")
    feeds = random_feeds(model)
    np.testing.assert_array_equal(run(tmp_path / "moved.onnx", feeds)[0], run(model, feeds)[0])


@pytest.mark.parametrize("where", ["constant", "branch", "function", "behind a cast"])
def test_external_data_anywhere(tmp_path, where):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    external = onnx.TensorProto(
        name="w", data_type=1, dims=[32, 64], data_location=onnx.TensorProto.EXTERNAL
    )
    external.external_data.add(key="location", value="w.bin")
    graph, functions = GraphBuilder(), []
    if where == "constant":
        product(graph, graph.node("Constant", [], value=external))
    elif where == "behind a cast":
        graph.initializers.append(external)
        product(graph, graph.node("Cast", ["w"], to=1))
    elif where == "branch":
        graph = None
    else:
        nodes = [
            helper.make_node("Constant", [], ["w"], value=external),
            helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
        ]
        imports = [helper.make_opsetid("", 18)]
        functions = [helper.make_function("custom", "Fixed", ["x"], ["y"], nodes, imports)]
        graph.node("Fixed", [graph.input("x", [5, 64])], "y", domain="custom")
    if graph is None:
        model = _branches(WEIGHT, WEIGHT, outer=False)
        for each in model.graph.node[0].attribute:
            each.g.initializer[0].CopyFrom(external)
            each.g.node[0].input[1] = "w"
        count = 2
    else:
        model, count = graph.model("y", rank=2, functions=functions), 1
    compiled = compile_proto(model, tmp_path)
    assert len(compiled.tiled) == count, compiled.reasons
    feeds = random_feeds(model)
    expected = feeds["x"] @ WEIGHT.T
    np.testing.assert_allclose(run(compiled.model, feeds)[0], expected, rtol=1e-4, atol=1e-4)


# --- operator sets -------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", range(9, 25))
def test_operator_sets(tmp_path, opset):
    graph = GraphBuilder()
    value = graph.node(
        "Gemm",
        [
            graph.input("x", [5, 64]),
            graph.weight("w", WEIGHT),
            graph.weight("c", np.ones(32, np.float32)),
        ],
        transB=1,
    )
    value = graph.node("Relu", [value])
    axes = {} if opset >= 13 else {"axes": [2]}
    inputs = [value, ints(graph, 2)] if opset >= 13 else [value]
    graph.node("Unsqueeze", inputs, "y", **axes)
    ir_version = {24: 11, 23: 11}.get(opset, 8 if opset < 20 else 10)
    model = graph.model("y", rank=3, opset=opset, ir_version=ir_version)
    compiled = compile_and_compare(model, tmp_path, lowered=1)
    (imported,) = [each.version for each in compiled.model.opset_import if not each.domain]
    assert imported == (opset if opset >= 15 else 18)


def test_an_operator_set_that_cannot_be_converted_is_refused(tmp_path, monkeypatch):
    from tbn_compile import ModelError, inspect_model
    from tbn_compile.passes.onnx import raise_opset

    graph = GraphBuilder()
    inputs = [graph.input("x", [5, 64]), graph.weight("w", WEIGHT), graph.weight("c", WEIGHT[:, 0])]
    graph.node("Gemm", inputs, "y", transB=1)
    onnx.save(graph.model("y", rank=2, opset=9, ir_version=4), tmp_path / "m.onnx")
    monkeypatch.setattr(raise_opset, "_convert", lambda model: None)
    with pytest.raises(ModelError, match=r"m.onnx: operator set 9 is too old"):
        inspect_model(tmp_path / "m.onnx")
