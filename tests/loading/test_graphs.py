"""Graphs that break ONNX's rules, and graphs that ask for too much."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from helpers.graphs import GraphBuilder, compile_proto
from onnx import helper, numpy_helper

from tbn_compile.loading import load_model


def test_a_cycle(model, refuse_model):
    model.graph.node[0].input[0] = "y"
    refuse_model(model)


def test_a_node_that_reads_itself(model, refuse_model):
    model.graph.node[1].input[0] = "y"
    refuse_model(model)


def test_nodes_out_of_order(model, refuse_model):
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    refuse_model(model)


def test_a_value_that_is_not_there(model, refuse_model):
    model.graph.node[0].input[0] = "nowhere"
    refuse_model(model, "nowhere")


def test_two_results_of_one_name(model, refuse_model):
    model.graph.node[1].output[0] = model.graph.node[0].output[0]
    refuse_model(model)


def test_two_initializers_of_one_name(model, refuse_model):
    model.graph.initializer.append(model.graph.initializer[0])
    refuse_model(model)


def test_two_inputs_of_one_name(model, refuse_model):
    model.graph.input.append(model.graph.input[0])
    refuse_model(model)


def test_an_unknown_operator(model, refuse_model):
    model.graph.node[1].op_type = "Rectify"
    refuse_model(model, "Rectify")


def test_an_unknown_attribute(model, refuse_model):
    model.graph.node[1].attribute.append(helper.make_attribute("slope", 1))
    refuse_model(model, "slope")


def test_an_attribute_of_another_type(model, refuse_model):
    model.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("transB", "yes"))
    refuse_model(model)


def test_no_graph(model, refuse_model):
    model.ClearField("graph")
    refuse_model(model, "holds no graph")


def test_no_operator_set(model, refuse_model):
    del model.opset_import[:]
    refuse_model(model)


@pytest.mark.parametrize("version", [-1, 0, 9999])
def test_impossible_operator_sets(model, refuse_model, version):
    model.opset_import[0].version = version
    refuse_model(model)


def test_a_function_that_calls_itself(model, refuse_model):
    node = helper.make_node("F", ["a"], ["b"], domain="f")
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    model.functions.append(helper.make_function("f", "F", ["a"], ["b"], [node], imports))
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.graph.node[1].CopyFrom(
        helper.make_node("F", [model.graph.node[0].output[0]], ["y"], domain="f")
    )
    refuse_model(model)


def test_functions_that_double(model, refuse_model):
    """Each function calls the one before twice: 2^40 nodes when inlined."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    model.functions.append(
        helper.make_function(
            "f", "F0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], imports
        )
    )
    for level in range(1, 40):
        nodes = [
            helper.make_node(f"F{level - 1}", ["a"], ["c"], domain="f"),
            helper.make_node(f"F{level - 1}", ["c"], ["b"], domain="f"),
        ]
        model.functions.append(helper.make_function("f", f"F{level}", ["a"], ["b"], nodes, imports))
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.graph.node[1].CopyFrom(
        helper.make_node("F39", [model.graph.node[0].output[0]], ["y"], domain="f")
    )
    refuse_model(model, "nodes")


def _nested(depth):
    info = helper.make_tensor_value_info("o", 1, None)
    constant = helper.make_node("Constant", [], ["o"], value_float=1.0)
    graph = helper.make_graph([constant], "g", [], [info])
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["o"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [info])
    return graph


def test_deep_subgraphs(model, refuse_model, monkeypatch):
    from tbn_compile import loading

    monkeypatch.setattr(loading, "MAX_DEPTH", 3)
    model.graph.node.extend(_nested(4).node)
    refuse_model(model, "nested deeper than 3")


def test_a_thousand_subgraphs(refuse_model):
    """Built as bytes: a graph in a node in a graph ..."""

    def field(number, content):
        length, size = b"", len(content)
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(1000):
        graph = field(1, field(5, field(6, graph)))
    refuse_model(bytes([8, 10]) + field(7, graph) + field(8, bytes([16, 18])), "not an ONNX file")


@pytest.mark.parametrize("name", ["n" * 10_000, "\x1b[31m\n\r", "\u202e\u2066", "\0"])
def test_hostile_names_reach_no_terminal(model, refuse_model, name):
    """A name in an error is printable and short, and does not push the reason out."""
    model.graph.initializer[0].name = name
    model.graph.node[0].input[1] = name
    model.graph.initializer[0].raw_data = b""
    refuse_model(model, "are needed")


@pytest.mark.parametrize("name", ["n" * 10_000, "\x1b[31m\n\r", "\u202e\u2066", "a/b\\c"])
def test_hostile_names_compile(model, tmp_path, name):
    for old in ("w", "x", "y", "Gemm_0"):
        for node in model.graph.node:
            for names in (node.input, node.output):
                for index, each in enumerate(names):
                    if each == old:
                        names[index] = old + name
        for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
            if value.name == old:
                value.name = old + name
    model.graph.node[0].name = name
    compiled = compile_proto(model, tmp_path)
    assert len(compiled.tiled) == 1


def test_text_that_is_not_utf8(model, refuse_model):
    content = model.SerializeToString().replace(b"n_Gemm_0", b"n_\xff\xff\xff\xff_0")
    refuse_model(content, "not UTF-8")


# --- operators of ai.tbn in the file ------------------------------------------------------------


def tiled_model(tile=None, scale=None, **changes):
    graph = GraphBuilder()
    attributes = {"weight_shape": [32, 64], "tile_length": 512, "scale_length": 2048}
    attributes = {k: v for k, v in {**attributes, **changes}.items() if v is not None}
    inputs = [
        graph.input("x", [5, 64]),
        graph.weight("tile", np.zeros(64, np.uint8) if tile is None else tile),
        graph.weight("scale", np.ones(1, np.float32) if scale is None else scale),
    ]
    graph.node("TiledBinaryGemm", inputs, "y", domain="ai.tbn", **attributes)
    model = graph.model("y", rank=2)
    model.opset_import.append(helper.make_opsetid("ai.tbn", 1))
    return model


def test_a_good_tiled_node_loads_and_gets_its_body(tmp_path):
    compiled = compile_proto(tiled_model(), tmp_path)
    assert [each.name for each in compiled.model.functions] == ["TiledBinaryGemm"]


BAD_TILES = {
    "huge weight": {"weight_shape": [2**40, 2**40]},
    "huge repeat": {"weight_shape": [2**20, 2**20], "scale_length": 2**33},
    "negative weight": {"weight_shape": [-32, -64]},
    "empty weight": {"weight_shape": [0, 64]},
    "one axis": {"weight_shape": [2048]},
    "no weight": {"weight_shape": None},
    "tile of nothing": {"tile_length": 0},
    "negative tile": {"tile_length": -8},
    "huge tile": {"tile_length": 2**60},
    "tile too short": {"tile_length": 513},
    "tile too long": {"tile_length": 500},
    "no tile length": {"tile_length": None},
    "negative offset": {"offset": -1},
    "offset past the tile": {"offset": 512},
    "overflowing offset": {"offset": 2**63 - 1},
    "no scale length": {"scale_length": None},
    "scale of nothing": {"scale_length": 0},
    "negative scale offset": {"scale_offset": -1},
    "scale offset past the cycle": {"scale_offset": 2048},
    "huge scale offset": {"scale_length": 2**33, "scale_offset": 2**33 - 1},
    "no scale": {"scale": np.ones(0, np.float32)},
    "scale of two axes": {"scale": np.ones((1, 1), np.float32)},
    "scale of another type": {"scale": np.ones(1, np.int64)},
    "tile of another type": {"tile": np.zeros(64, np.int8)},
    "text for a number": {"tile_length": "many"},
    "text for a shape": {"weight_shape": "wide"},
}


@pytest.mark.parametrize("changes", BAD_TILES.values(), ids=BAD_TILES)
def test_bad_tiled_nodes(refuse_model, changes):
    assert "n_y" in refuse_model(tiled_model(**changes))


def test_bad_tiled_nodes_in_branches_on_outer_tiles(refuse_model):
    model = tiled_model(tile=np.zeros(63, np.uint8))
    node = model.graph.node[0]
    branch = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, None)])
    model.graph.node[0].CopyFrom(
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    )
    model.graph.input.append(helper.make_tensor_value_info("c", 9, []))
    refuse_model(model, "does not hold 512 bits")


def test_a_tile_that_a_caller_gives_is_kept(tmp_path):
    model = tiled_model()
    model.graph.input.append(helper.make_tensor_value_info("tile", 2, [64]))
    compiled = compile_proto(model, tmp_path)
    assert [each.name for each in compiled.model.graph.input] == ["x", "tile"]
    del model.graph.initializer[0]
    assert len(compile_proto(model, tmp_path).tiled) == 1


# --- bombs ---------------------------------------------------------------------------------------


def _bomb(operator, repeats, claims=None):
    graph = GraphBuilder()
    tile = graph.weight("tile", np.float32([1, -1, 1, 1]))
    if operator == "Tile":
        value = graph.node("Tile", [tile, graph.weight("n", np.array([repeats]))])
    elif operator == "Expand":
        value = graph.node("Reshape", [tile, graph.weight("row", np.array([1, 4]))])
        value = graph.node("Expand", [value, graph.weight("n", np.array([repeats, 4]))])
    elif operator == "chain":
        value = tile
        count = graph.weight("n", np.array([64]))
        for _ in range(repeats):
            value = graph.node("Tile", [value, count])
    elif operator == "Concat":
        value = tile
        for _ in range(repeats):
            value = graph.node("Concat", [value, value], axis=0)
    elif operator == "computed":
        count = graph.node(
            "Mul", [graph.weight("a", np.array([repeats])), graph.weight("b", np.array([repeats]))]
        )
        value = graph.node(
            "Unsqueeze", [graph.node("Tile", [tile, count]), graph.weight("axis", np.array([0]))]
        )
    else:
        shape = graph.weight("n", np.array([repeats, 4]))
        value = graph.node(
            "ConstantOfShape", [shape], value=numpy_helper.from_array(np.float32([1]))
        )
    value = graph.node("Reshape", [value, graph.weight("shape", np.array([-1, 4]))])
    graph.node("MatMul", [graph.input("x", [2, 4]), graph.node("Transpose", [value])], "y")
    return graph.model("y", rank=2)


BOMBS = {
    "Tile": ("Tile", 2**28),
    "Tile far": ("Tile", 2**60),
    "Expand": ("Expand", 2**28),
    "Expand far": ("Expand", 2**62),
    "ConstantOfShape": ("ConstantOfShape", 2**28),
    "ConstantOfShape far": ("ConstantOfShape", 2**60),
    "chain": ("chain", 4),
    "long chain": ("chain", 40),
    "doubling": ("Concat", 27),
    "doubling far": ("Concat", 60),
    "computed": ("computed", 2**14),
    "computed far": ("computed", 2**31),
}

_LIMITED = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from tbn_compile import TbnError, compile_model
try:
    report = compile_model(sys.argv[1], output=sys.argv[2])
    outcome = {"reasons": [layer.reason for layer in report.layers]}
except TbnError as error:
    outcome = {"error": str(error)}
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
outcome["megabytes"] = int(status["VmHWM"].split()[0]) // 1024  # getrusage counts the parent too
print(json.dumps(outcome))
"""


@pytest.mark.parametrize(("operator", "repeats"), BOMBS.values(), ids=BOMBS)
def test_a_tiny_tile_with_a_huge_repeat(tmp_path, operator, repeats):
    """Refused in bounded memory and processor time, and nothing is written."""
    import json

    source, output = tmp_path / "bomb.onnx", tmp_path / "out.onnx"
    onnx.save(_bomb(operator, repeats), source)
    path = os.pathsep.join(each for each in sys.path if each)
    result = subprocess.run(
        [sys.executable, "-P", "-c", _LIMITED, source, output],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr[-500:]
    outcome = json.loads(result.stdout)
    assert outcome["megabytes"] < 600
    assert outcome["error"].startswith("bomb.onnx: ")
    assert not output.exists()


def test_a_repeat_of_a_usual_size_is_folded(tmp_path):
    compiled = compile_proto(_bomb("Tile", 256), tmp_path)
    assert [layer.status for layer in compiled.report.layers] == ["lowered"]


def test_many_nodes_are_refused(model, refuse_model, monkeypatch):
    from tbn_compile import loading

    monkeypatch.setattr(loading, "MAX_NODES", 1)
    refuse_model(model, "2 nodes once functions are inlined; at most 1")


# --- names and domains ---------------------------------------------------------------------------


def test_a_tensor_of_a_branch_that_hides_another_is_refused(model, refuse_model):
    weight = model.graph.initializer[0]
    kind = helper.make_tensor_value_info("z", 1, [None, None])
    node = helper.make_node("Gemm", ["x", weight.name], ["z"], transB=1)
    branch = helper.make_graph([node], "branch", [], [kind], [weight])
    model.graph.input.append(helper.make_tensor_value_info("c", 9, []))
    model.graph.node.append(
        helper.make_node("If", ["c"], ["out"], then_branch=branch, else_branch=branch)
    )
    refuse_model(model, f"tensor '{weight.name}' in a subgraph hides another; rename it")


def test_the_default_domain_may_be_written_out(model, tmp_path):
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    onnx.save(model, tmp_path / "written.onnx")
    loaded = load_model(tmp_path / "written.onnx")
    assert set(loaded.opset_imports) == {""}
    assert {node.domain for node in loaded.graph} == {""}
