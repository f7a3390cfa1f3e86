"""The passes together: compiling twice, the same bytes, names, metadata."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from helpers.graphs import GraphBuilder, assert_same_results, compile_proto
from helpers.weights import tiled_array

RNG = np.random.default_rng(0)


def network():
    graph = GraphBuilder()
    kernel = graph.weight("kernel", tiled_array((16, 8, 3, 3), 288, 0.2))
    value = graph.node("Conv", [graph.input("x", ["batch", 8, 9, 9]), kernel])
    statistics = [
        graph.weight(name, np.abs(RNG.standard_normal(16)).astype(np.float32) + np.float32(0.1))
        for name in ("gamma", "beta", "mean", "variance")
    ]
    value = graph.node("Relu", [graph.node("BatchNormalization", [value, *statistics])])
    value = graph.node("Flatten", [value])
    value = graph.node("MatMul", [value, graph.weight("w", tiled_array((784, 32), 784 * 4, 0.1))])
    value = graph.node(
        "Add", [value, graph.weight("b", RNG.standard_normal(32).astype(np.float32))]
    )
    dense = graph.weight("dense", RNG.standard_normal((32, 10)).astype(np.float32))
    graph.node("Gemm", [value, dense], "y")
    return graph.model("y", rank=2)


@pytest.fixture(scope="module")
def model():
    return network()


def test_a_compiled_model_compiles_to_the_same_bytes_again(model, tmp_path):
    first = compile_proto(model, tmp_path)
    second = compile_proto(first.path, tmp_path)
    third = compile_proto(second.path, tmp_path)
    assert second.path.read_bytes() == third.path.read_bytes()
    assert second.path.read_bytes() == first.path.read_bytes()
    assert_same_results(model, second)


def test_hash_seeds_do_not_matter(model, tmp_path):
    onnx.save(model, tmp_path / "m.onnx")
    code = (
        "import sys; from tbn_compile import compile_model;"
        "compile_model(sys.argv[1], output=sys.argv[2])"
    )
    written = []
    for seed in ("1", "2"):
        output = tmp_path / f"{seed}.onnx"
        subprocess.run(
            [sys.executable, "-P", "-c", code, tmp_path / "m.onnx", output],
            check=True,
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            },
        )
        written.append(output.read_bytes())
    assert written[0] == written[1]


def test_inputs_and_outputs_keep_names_and_shapes(model, tmp_path):
    compiled = compile_proto(model, tmp_path)
    assert compiled.model.graph.input == model.graph.input
    assert [each.name for each in compiled.model.graph.output] == ["y"]


def test_metadata_is_kept(model, tmp_path):
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.producer_name = "trainer"
    model.metadata_props.add(key="author", value="me")
    compiled = compile_proto(model, tmp_path)
    assert compiled.model.producer_name == "trainer"
    assert {each.key: each.value for each in compiled.model.metadata_props}["author"] == "me"


def test_layers_are_reported_in_graph_order(model, tmp_path):
    compiled = compile_proto(model, tmp_path)
    assert [layer.operator for layer in compiled.report.layers] == ["Conv", "MatMul", "Gemm"]
    assert [layer.status for layer in compiled.report.layers] == [
        "lowered",
        "lowered",
        "left alone",
    ]


def test_new_names_do_not_meet_old_ones(tmp_path):
    graph = GraphBuilder()
    weight = graph.weight("w", tiled_array((32, 64), 512))
    x = graph.input("n_y.tile", [5, 64])
    graph.weight("n_y.scale", np.float32([1, 2]))
    value = graph.node("Gemm", [x, weight], "y", transB=1)
    graph.node("Mul", [value, graph.weight("s", np.float32(2))], "n_y.tile_1")
    graph.node("Gather", ["n_y.scale", graph.weight("i", np.array(0))], "z")
    model = graph.model("n_y.tile_1", "z", rank=2)
    del model.graph.output[1].type.tensor_type.shape.dim[:]
    compiled = compile_proto(model, tmp_path)
    assert len(compiled.tiled) == 1
    assert_same_results(model, compiled)


def test_nodes_without_names(tmp_path):
    graph = GraphBuilder()
    x = graph.input("x", [5, 64])
    for index in range(2):
        graph.node(
            "Gemm",
            [x, graph.weight(f"w{index}", tiled_array((32, 64), 512, seed=index))],
            f"y{index}",
            transB=1,
        )
    for node in graph.nodes:
        node.name = ""
    model = graph.model("y0", "y1", rank=2)
    compiled = compile_proto(model, tmp_path)
    assert [layer.name for layer in compiled.report.layers] == ["y0", "y1"]
    assert_same_results(model, compiled)


def test_a_model_without_layers_is_written_as_it_was(tmp_path):
    graph = GraphBuilder()
    graph.node("Relu", [graph.input("x", [3])], "y")
    compiled = compile_proto(graph.model("y", rank=1), tmp_path)
    assert compiled.operators == ["Relu"]
    assert not compiled.model.functions
