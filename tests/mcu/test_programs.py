"""Whole models in C: right, strict, static, and the same every time."""

from __future__ import annotations

import re
import subprocess
from itertools import pairwise

import numpy as np
import onnx
import pytest
from helpers.architectures import ARCHITECTURES
from helpers.programs import STRICT, compile_for, largest_error, run_natively, write_sources

from tbn_compile.targets.mcu.compiler.dense import compile_dense_program
from tbn_compile.targets.mcu.cores import CORES

NAMES = ("mlp", "cnn", *ARCHITECTURES)


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_are_those_of_onnx_runtime(programs, name, tmp_path):
    program = programs[name]

    assert largest_error(run_natively(program, tmp_path), program.sample.outputs) < 1e-5


@pytest.mark.parametrize("optimization", ["ram", "time"])
@pytest.mark.parametrize("name", ["mlp", "residual", "series"])
def test_every_optimization_gives_the_same_outputs(models, name, optimization, tmp_path):
    program = compile_for(models[name], "cortex-m0plus", optimization)

    assert largest_error(run_natively(program, tmp_path), program.sample.outputs) < 1e-5


@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-none-eabi-gcc"])
@pytest.mark.parametrize("name", NAMES)
def test_every_compiler_accepts_it_without_a_warning(programs, name, compiler, tmp_path):
    for source in write_sources(programs[name], tmp_path):
        subprocess.run([compiler, *STRICT, "-c", str(source), "-o", "/dev/null"], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_only_three_headers_and_no_heap_stdio_or_recursion(programs, name):
    text = "".join(programs[name].sources.values())

    headers = set(re.findall(r"#include <(.*)>", text))
    assert headers <= {"stdint.h", "string.h", "math.h"}
    assert not re.search(r"\b(malloc|calloc|free|printf|TVM(?!GEN)\w*)\b", text)
    bodies = re.findall(r"^KERNEL void (\w+)\([^;]*\) \{\n(.*?)^\}", text, re.M | re.S)
    assert len(bodies) > 0
    assert not any("tvmgen_default_" in body for _, body in bodies)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_clean_under_sanitizers(programs, name, tmp_path):
    outputs = run_natively(
        programs[name], tmp_path, "-fsanitize=undefined", "-fno-sanitize-recover=all"
    )

    assert largest_error(outputs, programs[name].sample.outputs) < 1e-5


def test_the_same_model_gives_the_same_text(models, programs):
    again = compile_for(models["residual"], "cortex-m4")

    assert again.sources == programs["residual"].sources


def test_the_mlp_keeps_to_its_budget(programs):
    program = programs["mlp"]

    assert program.weight_bytes <= 3400
    assert program.workspace_bytes <= 1331  # 1.3 KB


@pytest.mark.parametrize("name", NAMES)
def test_the_workspace_is_what_its_largest_step_needs(programs, name):
    program = programs[name]

    assert program.peak_operator is not None
    assert program.workspace_bytes <= program.peak_operator.live_bytes + 64


def _graph(nodes, outputs, initializers=()):
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3])]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )


def _floats(name, *shape):
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _run(model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    program = compile_for(path, "c", dims={})
    return program, run_natively(program, tmp_path)


def test_an_input_may_be_an_output(tmp_path):
    model = _graph([onnx.helper.make_node("Relu", ["x"], ["y"])], [_floats("y", 2, 3)])
    model.graph.node.append(onnx.helper.make_node("Identity", ["x"], ["z"]))
    model.graph.output.append(_floats("z", 2, 3))

    program, outputs = _run(model, tmp_path)

    for result, reference in zip(outputs, program.sample.outputs, strict=True):
        np.testing.assert_array_equal(result, reference)


def test_a_view_and_its_source_may_both_be_outputs(tmp_path):
    shape = onnx.numpy_helper.from_array(np.array([3, 2]), "shape")
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["y"]),
        onnx.helper.make_node("Reshape", ["y", "shape"], ["z"]),
        onnx.helper.make_node("Neg", ["z"], ["w"]),
    ]
    model = _graph(nodes, [_floats("y", 2, 3), _floats("z", 3, 2), _floats("w", 3, 2)], [shape])

    program, outputs = _run(model, tmp_path)

    for result, reference in zip(outputs, program.sample.outputs, strict=True):
        np.testing.assert_array_equal(result, reference)


def test_scalars_come_in_and_go_out(tmp_path):
    nodes = [
        onnx.helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        onnx.helper.make_node("Mul", ["total", "factor"], ["y"]),
    ]
    model = _graph(nodes, [_floats("y")])
    model.graph.input.append(_floats("factor"))

    program, outputs = _run(model, tmp_path)

    assert [tensor.shape for tensor in (*program.inputs, *program.outputs)] == [(2, 3), (), ()]
    assert largest_error(outputs, program.sample.outputs) < 1e-6


def test_a_constant_may_be_an_output(tmp_path):
    value = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32) / 3, "c")
    nodes = [
        onnx.helper.make_node("Neg", ["x"], ["y"]),
        onnx.helper.make_node("Identity", ["c"], ["z"]),
    ]

    program, outputs = _run(_graph(nodes, [_floats("y", 2, 3), _floats("z", 4)], [value]), tmp_path)

    np.testing.assert_array_equal(outputs[1], program.sample.outputs[1])


def test_a_function_may_have_several_results(tmp_path):
    nodes = [
        onnx.helper.make_node("Split", ["x"], ["a", "b", "c"], axis=1, num_outputs=3),
        onnx.helper.make_node("Mul", ["a", "c"], ["y"]),
    ]
    model = _graph(nodes, [_floats("y", 2, 1), _floats("b", 2, 1)])
    model.opset_import[0].version = 18

    program, outputs = _run(model, tmp_path)

    for result, reference in zip(outputs, program.sample.outputs, strict=True):
        np.testing.assert_array_equal(result, reference)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 0.1, -0.0, 1e-40, 3.4e38])
def test_a_float_constant_is_exact(value, tmp_path):
    constant = onnx.numpy_helper.from_array(np.array(value, np.float32), "c")
    nodes = [onnx.helper.make_node("Max", ["x", "c"], ["y"])]

    program, outputs = _run(_graph(nodes, [_floats("y", 2, 3)], [constant]), tmp_path)

    np.testing.assert_array_equal(outputs[0], program.sample.outputs[0])


HOSTILE = ["while", "a */ b", "a\nb", "😀", "x" * 10_000, "a */ b ", "0", 'q"; int z; //']


def test_hostile_names_give_valid_distinct_c(tmp_path):
    nodes = [
        onnx.helper.make_node("Relu", ["x"], [HOSTILE[0]], name="first"),
        *(
            onnx.helper.make_node("Neg", [before], [after], name=before)
            for before, after in pairwise(HOSTILE)
        ),
    ]
    outputs = [_floats(name, 2, 3) for name in HOSTILE]

    program, results = _run(_graph(nodes, outputs), tmp_path)

    assert len({tensor.identifier for tensor in program.outputs}) == len(HOSTILE)
    for result, reference in zip(results, program.sample.outputs, strict=True):
        np.testing.assert_array_equal(result, reference)


@pytest.mark.parametrize("optimization", ["ram", "balanced"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "series"])
def test_the_dense_program_gives_the_same_outputs(models, name, optimization, tmp_path):
    program = compile_dense_program(models[name], CORES["c"], optimization, {"batch": 1})

    assert largest_error(run_natively(program, tmp_path), program.sample.outputs) < 1e-5


def test_one_scale_serves_several_copies_of_a_row(tmp_path):
    signs = np.tile(np.array([1, -1, -1, 1], np.float32), (16, 1))
    weight = signs * np.repeat(np.array([0.5, 0.75, 1.25, 1.5], np.float32), 4)[:, None]
    node = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], kernel_shape=[1, 1], pads=[2, 2, 0, 2], strides=[2, 1]
    )
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 2, 1])
    constant = onnx.numpy_helper.from_array(weight.reshape(16, 4, 1, 1), "w")
    graph = onnx.helper.make_graph([node], "g", [x], [_floats("y", 1, 16, 2, 5)], [constant])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )

    program, outputs = _run(model, tmp_path)

    assert program.operators[0].kernel.endswith("1 of 16 rows, 4 of 4 columns")
    assert largest_error(outputs, program.sample.outputs) < 1e-6


def test_pooling_after_scales_that_change_inside_rows(tmp_path):
    signs = np.resize(np.array([1, -1, -1, 1, 1], np.float32), 24)
    scales = np.repeat(np.array([0.5, 0.75, 1.25, 1.5, 2.0], np.float32), 5)[:24]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[1, 1]),
        onnx.helper.make_node("MaxPool", ["c"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 6, 4])
    constant = onnx.numpy_helper.from_array((signs * scales).reshape(6, 4, 1, 1), "w")
    graph = onnx.helper.make_graph(nodes, "g", [x], [_floats("y", 1, 6, 3, 2)], [constant])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )

    program, outputs = _run(model, tmp_path)

    assert [operator.kernel.split(";")[0] for operator in program.operators] == [
        "signed inputs, scales inside rows"
    ]
    assert largest_error(outputs, program.sample.outputs) < 1e-6
