"""What a microcontroller cannot run is refused, every node of it in one message."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tbn_compile.compiler import CompileOptions, compile_model
from tbn_compile.errors import ModelError

FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


def _save(tmp_path, nodes, inputs, outputs, initializers=()):
    graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def _tensor(name, kind, *shape):
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def _refusal(path, **dims):
    with pytest.raises(ModelError) as caught:
        compile_model(path, "cortex-m4", options=CompileOptions(input_dims=dims))
    assert not path.with_suffix(".tar").exists()
    return str(caught.value)


def test_every_unsupported_operator_is_listed(tmp_path):
    nodes = [
        onnx.helper.make_node("Det", ["x"], ["a"], name="first"),
        onnx.helper.make_node("Neg", ["x"], ["b"], name="fine"),
        onnx.helper.make_node("QuickGelu", ["b"], ["c"], name="second", domain="com.microsoft"),
    ]
    path = _save(
        tmp_path,
        nodes,
        [_tensor("x", FLOAT, 3, 3)],
        [_tensor("a", FLOAT), _tensor("c", FLOAT, 3, 3)],
    )

    message = _refusal(path)

    assert "node 'first': operator Det is not supported" in message
    assert "node 'second': operator com.microsoft::QuickGelu is not supported" in message
    assert "fine" not in message


def test_every_float64_node_is_listed(tmp_path):
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["a"], name="widen", to=DOUBLE),
        onnx.helper.make_node("Neg", ["a"], ["b"], name="negate"),
        onnx.helper.make_node("Cast", ["b"], ["y"], name="narrow", to=FLOAT),
    ]
    path = _save(tmp_path, nodes, [_tensor("x", FLOAT, 3)], [_tensor("y", FLOAT, 3)])

    message = _refusal(path)

    assert "node 'widen': float64; export the model in float32" in message
    assert "node 'negate': float64" in message
    assert "narrow" not in message


def test_an_unnamed_node_is_named_by_its_result(tmp_path):
    nodes = [onnx.helper.make_node("Det", ["x"], ["y"])]
    path = _save(tmp_path, nodes, [_tensor("x", FLOAT, 3, 3)], [_tensor("y", FLOAT)])

    assert "unnamed Det node that gives 'y': operator Det" in _refusal(path)


def test_what_onnx_runtime_does_not_know_is_listed_too(tmp_path):
    nodes = [onnx.helper.make_node("Secret", ["x"], ["y"], name="mine", domain="com.microsoft")]
    path = _save(tmp_path, nodes, [_tensor("x", FLOAT, 3)], [_tensor("y", FLOAT, 3)])

    assert "node 'mine': operator com.microsoft::Secret is not supported" in _refusal(path)


def test_a_float64_input_is_refused(tmp_path):
    nodes = [onnx.helper.make_node("Neg", ["x"], ["y"])]
    path = _save(tmp_path, nodes, [_tensor("x", DOUBLE, 3)], [_tensor("y", DOUBLE, 3)])

    assert "input 'x': float64; export the model in float32" in _refusal(path)


def test_every_dynamic_dimension_is_listed_with_its_mend(tmp_path):
    nodes = [onnx.helper.make_node("Add", ["x", "y"], ["z"])]
    path = _save(
        tmp_path,
        nodes,
        [_tensor("x", FLOAT, "batch", 3), _tensor("y", FLOAT, "batch", "width")],
        [_tensor("z", FLOAT, "batch", 3)],
    )

    message = _refusal(path)

    assert "input 'x': dimension 0 is dynamic; give --input-dim batch=N" in message
    assert "input 'y': dimension 1 is dynamic; give --input-dim width=N" in message


def test_a_pinned_dimension_is_no_problem(tmp_path):
    nodes = [onnx.helper.make_node("Neg", ["x"], ["y"])]
    path = _save(
        tmp_path, nodes, [_tensor("x", FLOAT, "batch", 3)], [_tensor("y", FLOAT, "batch", 3)]
    )

    compile_model(path, "cortex-m4", options=CompileOptions(input_dims={"batch": 2}))

    assert path.with_suffix(".tar").exists()


def test_a_shape_that_depends_on_values_is_refused(tmp_path):
    nodes = [onnx.helper.make_node("NonZero", ["x"], ["y"], name="where")]
    path = _save(
        tmp_path,
        nodes,
        [_tensor("x", FLOAT, 3)],
        [_tensor("y", onnx.TensorProto.INT64, 1, "count")],
    )

    assert "only known when the model runs" in _refusal(path)


def test_names_in_the_message_are_cleaned(tmp_path):
    nodes = [onnx.helper.make_node("Det", ["x"], ["y"], name="a\x1b[31m\n" + "n" * 5000)]
    path = _save(tmp_path, nodes, [_tensor("x", FLOAT, 3, 3)], [_tensor("y", FLOAT)])

    message = _refusal(path)

    assert message.isprintable()
    assert len(message) < 400


def test_an_initializer_that_is_also_an_input_is_a_constant(tmp_path):
    nodes = [onnx.helper.make_node("Add", ["x", "w"], ["y"])]
    weight = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    path = _save(
        tmp_path,
        nodes,
        [_tensor("x", FLOAT, 3), _tensor("w", FLOAT, 3)],
        [_tensor("y", FLOAT, 3)],
        [weight],
    )

    compile_model(path, "c")

    assert path.with_suffix(".tar").exists()
