"""`from_onnx` on `ai.tbn` nodes: parameters, branches, and attributes that mean nothing."""

import numpy as np
import onnx
import pytest
from helpers.relax_calls import operators
from onnx import helper
from relax_modules import run
from runtime_models import Layer, make_model
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from tbn_compile.errors import ModelError
from tbn_compile.operators import CONV as CONV_NODE
from tbn_compile.operators import GEMM as GEMM_NODE
from tbn_compile.operators import function_body
from tbn_compile.passes.relax import CONV, GEMM

BITS = np.random.default_rng(1).integers(0, 2, 12).astype(np.uint8)

# TVM passes on what ONNX's checker finds, which is more once the schemas are registered.
checker_warns = pytest.mark.filterwarnings("ignore::UserWarning")


def gemm_layer(**attributes):
    return Layer((6, 4), BITS, np.array([0.5]), 24, bias=np.arange(6.0), attributes=attributes)


def conv_layer(**attributes):
    return Layer((4, 2, 3), BITS, np.array([0.5]), 24, attributes=attributes)


def model_of(layer, x_shape):
    model = make_model(layer, x_shape=x_shape)
    for _ in x_shape:
        model.graph.output[0].type.tensor_type.shape.dim.add()
    return model


def test_function_bodies_are_ignored():
    model = model_of(gemm_layer(activation_min=0.0), [2, 4])
    model.functions.append(function_body(GEMM_NODE, 17))
    model.functions.append(function_body(CONV_NODE, 17))
    module = from_onnx(model)
    assert operators(module) == [GEMM]


def test_parameters_may_stay_inputs():
    layer, x = gemm_layer(), np.ones((2, 4), np.float32)
    module = from_onnx(model_of(layer, ["batch", 4]), keep_params_in_input=True)
    module, parameters = relax.frontend.detach_params(module)
    assert operators(module) == [GEMM]
    assert len(module["main"].params) == 4
    actual = run(module, x, *(each.numpy() for each in parameters["main"]))
    np.testing.assert_allclose(actual, layer.expected(x), rtol=1e-5)


def test_unknown_extent_is_checked_when_the_model_runs():
    module = from_onnx(model_of(gemm_layer(), ["batch", "inputs"]))
    assert run(module, np.ones((2, 4), np.float32)).shape == (2, 6)
    with pytest.raises(RuntimeError, match="mismatch"):
        run(module, np.ones((2, 5), np.float32))


def test_branches():
    model = model_of(gemm_layer(), [2, 4])
    node = model.graph.node[0]
    node.output[0] = "inner"
    kind = onnx.TensorProto.FLOAT
    results = [helper.make_tensor_value_info(name, kind, [2, 6]) for name in ("inner", "negated")]
    negate = helper.make_node("Neg", ["other"], ["negated"])
    then = helper.make_graph([node], "then", [], results[:1])
    orelse = helper.make_graph([negate], "else", [], results[1:])
    model.graph.input.append(helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    model.graph.input.append(helper.make_tensor_value_info("other", kind, [2, 6]))
    del model.graph.node[:]
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["Y"], then_branch=then, else_branch=orelse)
    )
    x, other = np.ones((2, 4), np.float32), np.ones((2, 6), np.float32)
    module = from_onnx(model)
    for flag, expected in ((True, gemm_layer().expected(x)), (False, -other)):
        np.testing.assert_allclose(run(module, x, np.array(flag), other), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"weight_shape": [2**60, 4]}, "must hold 1 to"),
        ({"weight_shape": [6]}, "2 dimensions"),
        ({"weight_shape": None}, "weight_shape is missing"),
        ({"weight_shape": 24}, "list of integers"),
        ({"tile_length": 2**60}, "tile length"),
        ({"tile_length": 12.0}, "tile_length must be an integer"),
        ({"tile_length": 17}, "17 bits need"),
        ({"offset": -1}, "offset -1"),
        ({"scale_length": 0}, "scale length 0"),
        ({"scale_offset": 24}, "scale offset 24"),
        ({"transB": 2}, "transB 2"),
        ({"transB": 0}, "X has 4 inputs"),
        ({"activation_min": 1.0, "activation_max": 0.0}, "ordered"),
        ({"activation_min": float("nan")}, "ordered"),
    ],
)
@checker_warns
def test_gemm_attributes_that_mean_nothing(attributes, message):
    refuse(gemm_layer(**attributes), [2, 4], message)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"strides": [0]}, "strides"),
        ({"strides": [1, 1]}, "strides"),
        ({"dilations": [2**60]}, "dilations"),
        ({"pads": [-1, 0]}, "pads"),
        ({"pads": [1]}, "pads"),
        ({"pads": [1, 1], "auto_pad": "SAME_UPPER"}, "cannot both"),
        ({"auto_pad": "SAME\nLOWER\x1b"}, "auto_pad"),
        ({"auto_pad": 1}, "must be a string"),
        ({"group": 3}, "group 3"),
        ({"group": 2}, "X has 2 inputs"),
        ({"dilations": [40]}, "exceeds X"),
        ({"dilations": [5], "strides": [3]}, "exceeds X"),
        ({"pads": [0, 2**39]}, "result of"),
        ({"weight_shape": [4, 2, 1, 3]}, "strides|does not fit"),
    ],
)
@checker_warns
def test_conv_attributes_that_mean_nothing(attributes, message):
    refuse(conv_layer(**attributes), [1, 2, 9], message)


def refuse(layer, x_shape, message):
    with pytest.raises(ModelError, match=f"^node 'layer': .*{message}"):
        from_onnx(model_of(layer, x_shape))


def test_conv_is_a_call():
    assert operators(from_onnx(model_of(conv_layer(), [1, 2, 9]))) == [CONV]
