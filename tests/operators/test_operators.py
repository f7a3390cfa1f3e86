"""The operator set `ai.tbn`: schema, shape inference and function bodies against numpy."""

import numpy as np
import onnx
import onnx.reference
import pytest
from helpers.graphs import GraphBuilder, attribute, compile_proto, run
from helpers.weights import random_signs, tiled_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import defs, helper

from tbn_compile import operators
from tbn_compile.tile import TiledBinaryWeight, pack_bits

INFINITY = float("inf")
OPSETS = range(operators.MIN_OPSET, 25)


def node_model(weight, x_shape, *, bias=None, opset=18, dtype="float32", omit=(), **attributes):
    """A model of one `ai.tbn` node with its function body."""
    operator = operators.CONV if len(weight.shape) > 2 else operators.GEMM
    graph = GraphBuilder()
    inputs = [
        graph.input("x", x_shape, dtype),
        graph.weight("tile", weight.bits),
        graph.weight("scale", weight.scale),
    ]
    if bias is not None:
        inputs.append(graph.weight("bias", bias))
    values = {
        **operators.weight_attributes(weight),
        "activation_min": -INFINITY,
        "activation_max": INFINITY,
        **attributes,
    }
    if operator == operators.GEMM:
        values["transB"] = int(weight.layout == "NK")
    values = {key: value for key, value in values.items() if key not in omit}
    graph.node(operator, inputs, "y", domain=operators.DOMAIN, **values)
    body = operators.function_body(operator, opset)
    return graph.model("y", opset=opset, dtype=dtype, rank=len(x_shape), functions=[body])


def gemm_weight(layout="NK", dtype=np.float32, **changes):
    fields = {
        "bits": pack_bits(random_signs(1, 37)),
        "shape": (6, 10) if layout == "NK" else (10, 6),
        "tile_length": 37,
        "scale": np.linspace(-1, 1, 4).astype(dtype),
        "scale_length": 11,
        "offset": 5,
        "scale_offset": 13,
        "layout": layout,
    }
    return TiledBinaryWeight(**{**fields, **changes})


def conv_weight(*kernel, group=1, dtype=np.float32):
    shape = (4 * group, 3, *kernel)
    size = int(np.prod(shape))
    return TiledBinaryWeight(
        bits=pack_bits(random_signs(2, size // 2 + 1)),
        shape=shape,
        tile_length=size // 2 + 1,
        scale=np.linspace(-1, 1, 4 * group).astype(dtype),
        scale_length=size // (4 * group),
        offset=3,
    )


X = np.random.default_rng(0).standard_normal((2, 3, 10)).astype(np.float32)
BIAS = np.random.default_rng(1).standard_normal(6).astype(np.float32)


def dense(weight, x, bias=0, lower=-INFINITY, upper=INFINITY):
    return np.clip(x @ weight.matrix().T + bias, lower, upper)


@pytest.mark.parametrize("operator", [operators.GEMM, operators.CONV])
def test_schemas_are_registered_once_and_documented(operator):
    operators.register_schemas()
    operators.register_schemas()
    schema = defs.get_schema(operator, 1, operators.DOMAIN)
    assert schema.since_version == 1
    assert [each.name for each in schema.inputs] == ["X", "tile", "scale", "bias"]
    assert schema.doc
    assert all(each.description for each in schema.inputs)
    listed = {name: default for name, _, default, _ in operators.attributes_of(operator)}
    assert set(schema.attributes) == set(listed)
    for name, each in schema.attributes.items():
        assert each.required == (listed[name] is None)
        assert each.description


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("layout", ["NK", "KN"])
def test_gemm_body_in_every_operator_set(opset, layout):
    weight = gemm_weight(layout)
    model = node_model(weight, [2, 3, 10], bias=BIAS, opset=opset, activation_max=1.0)
    onnx.checker.check_model(model, full_check=True)
    expected = dense(weight, X, BIAS, upper=1.0)
    np.testing.assert_allclose(run(model, {"x": X})[0], expected, rtol=1e-5, atol=1e-5)
    evaluator = onnx.reference.ReferenceEvaluator(model)
    np.testing.assert_allclose(evaluator.run(None, {"x": X})[0], expected, rtol=1e-5, atol=1e-5)


def reference_conv(weight, x, bias, **attributes):
    """The dense Conv in stock ONNX Runtime."""
    graph = GraphBuilder()
    inputs = [graph.input("x", list(x.shape)), graph.weight("w", weight.expand())]
    if bias is not None:
        inputs.append(graph.weight("b", bias))
    graph.node("Conv", inputs, "y", **attributes)
    return run(graph.model("y", rank=x.ndim), {"x": x})[0]


CONVOLUTIONS = {
    "1-D": ((3,), {"strides": [2], "dilations": [2], "pads": [1, 2]}),
    "2-D": ((3, 2), {"group": 2, "strides": [1, 2], "dilations": [1, 1], "pads": [0, 1, 2, 0]}),
    "3-D": ((2, 1, 3), {"strides": [1, 1, 1], "dilations": [1, 2, 1], "pads": [0] * 6}),
    "same upper": ((3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": ((2, 2), {"strides": [2, 1], "auto_pad": "SAME_LOWER"}),
    "valid": ((3, 3), {"auto_pad": "VALID"}),
    "nothing given": ((3, 3), {}),
}


@pytest.mark.parametrize("opset", [15, 18, 22, 24])
@pytest.mark.parametrize(("kernel", "attributes"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv_body(kernel, attributes, opset):
    group = attributes.get("group", 1)
    weight = conv_weight(*kernel, group=group)
    x = np.random.default_rng(3).standard_normal((2, 3 * group, *[8, 7, 9][: len(kernel)]))
    x = x.astype(np.float32)
    bias = np.linspace(-1, 1, weight.outputs).astype(np.float32)
    expected = np.maximum(reference_conv(weight, x, bias, **attributes), 0)
    model = node_model(
        weight, list(x.shape), bias=bias, opset=opset, activation_min=0.0, **attributes
    )
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)
    inferred = onnx.shape_inference.infer_shapes(without_bodies(model), strict_mode=True)
    dims = inferred.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == list(expected.shape)


def without_bodies(model):
    """Only the schema is left to infer shapes with."""
    operators.register_schemas()
    bare = onnx.ModelProto.FromString(model.SerializeToString())
    del bare.functions[:]
    del bare.graph.output[0].type.tensor_type.shape.dim[:]
    bare.graph.output[0].type.tensor_type.ClearField("shape")
    return bare


@given(weight=tiled_weights(most=8), leading=st.lists(st.integers(0, 3), max_size=3))
@settings(max_examples=40, deadline=None)
def test_gemm_body_for_any_weight(weight, leading):
    shape = (weight.outputs, weight.inputs) if weight.layout == "NK" else weight.shape
    weight = TiledBinaryWeight(
        **{**vars(weight), "shape": shape, "scale": weight.scale.astype(np.float32)}
    )
    x = np.random.default_rng(0).standard_normal((*leading, weight.inputs)).astype(np.float32)
    model = node_model(weight, list(x.shape))
    expected = dense(weight, x)
    (result,) = run(model, {"x": x})
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    inferred = onnx.shape_inference.infer_shapes(without_bodies(model), strict_mode=True)
    dims = inferred.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == list(expected.shape)


@pytest.mark.parametrize("shape", [["batch", 10], ["batch", "tokens", 10], [10]])
def test_gemm_shapes_keep_symbols(shape):
    model = without_bodies(node_model(gemm_weight(), shape))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    dims = inferred.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == [*shape[:-1], 6]


@pytest.mark.parametrize("attributes", [{}, {"auto_pad": "SAME_UPPER"}])
def test_conv_shapes_leave_unknown_extents_open(attributes):
    model = without_bodies(node_model(conv_weight(3, 3), ["n", 3, "h", 8], **attributes))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    dims = inferred.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == [
        "n",
        4,
        "unk__0",
        8 if attributes else 6,
    ]


def test_an_input_of_unknown_rank_infers_its_type_only():
    model = without_bodies(node_model(gemm_weight(), [2, 10]))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    kind = inferred.graph.output[0].type.tensor_type
    assert kind.elem_type == onnx.TensorProto.FLOAT
    assert not kind.HasField("shape")


def test_not_a_number_passes_the_clamp():
    x = X.copy()
    x[0, 0, 0] = np.nan
    weight = gemm_weight(scale=np.ones(1, np.float32), scale_length=1, scale_offset=0)
    model = node_model(weight, [2, 3, 10], activation_min=0.0, activation_max=6.0)
    (result,) = run(model, {"x": x})
    assert np.isnan(result[0, 0]).all()
    assert not np.isnan(result[0, 1:]).any()


def test_infinite_bounds_do_not_clamp():
    x = np.full((2, 3, 10), 3e38, np.float32)
    weight = gemm_weight(scale=np.full(1, 100, np.float32), scale_length=1, scale_offset=0)
    (result,) = run(node_model(weight, [2, 3, 10]), {"x": x})
    assert np.isinf(result).any()


def test_half_precision_body():
    weight = gemm_weight(dtype=np.float16)
    model = node_model(weight, [2, 3, 10], dtype="float16", bias=BIAS.astype(np.float16))
    (result,) = run(model, {"x": X.astype(np.float16)})
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, dense(weight, X, BIAS), rtol=1e-2, atol=2e-2)


OPTIONAL = ["offset", "scale_offset", "activation_min", "activation_max", "transB"]


@pytest.mark.parametrize("omit", [*([name] for name in OPTIONAL), OPTIONAL], ids=str)
def test_attributes_that_a_node_leaves_out_are_written(tmp_path, omit):
    """A function body has no defaults, so the compiler writes every attribute that has one."""
    weight = gemm_weight(offset=0, scale_offset=0)
    model = node_model(weight, [2, 3, 10], omit=omit)
    compiled = compile_proto(model, tmp_path)
    for name in OPTIONAL:
        assert attribute(compiled.tiled[0], name) is not None
    (result,) = run(compiled.model, {"x": X})
    np.testing.assert_allclose(result, dense(weight, X), rtol=1e-5, atol=1e-5)


def test_a_model_with_the_operator_but_no_body_gets_one(tmp_path):
    model = node_model(conv_weight(3, 3), [1, 3, 8, 8])
    expected = run(
        model, {"x": X[:1, :1, :8].reshape(1, 1, 1, 8) * np.ones((1, 3, 8, 1), np.float32)}
    )
    del model.functions[:]
    compiled = compile_proto(model, tmp_path)
    assert [each.name for each in compiled.model.functions] == [operators.CONV]
    actual = run(
        compiled.model, {"x": X[:1, :1, :8].reshape(1, 1, 1, 8) * np.ones((1, 3, 8, 1), np.float32)}
    )
    np.testing.assert_array_equal(actual[0], expected[0])


def test_a_missing_required_attribute_is_refused_by_the_checker():
    operators.register_schemas()
    model = node_model(gemm_weight(), [2, 10], omit=["weight_shape"])
    del model.functions[:]
    with pytest.raises(onnx.checker.ValidationError, match="weight_shape"):
        onnx.checker.check_model(model)


def test_the_body_is_the_same_for_every_call():
    first = operators.function_body(operators.GEMM, 18).SerializeToString()
    assert first == operators.function_body(operators.GEMM, 18).SerializeToString()
    assert (
        helper.make_opsetid("", 21) == operators.function_body(operators.CONV, 21).opset_import[0]
    )


@pytest.mark.parametrize(
    ("operator", "x_shape", "weight_shape"),
    [(operators.GEMM, ["b", 64], [32, 65]), (operators.CONV, ["b", 3, 8, 8], [4, 2, 3, 3])],
)
def test_shape_inference_refuses_inputs_that_do_not_fit(operator, x_shape, weight_shape):
    operators.register_schemas()
    node = helper.make_node(
        operator,
        ["X", "tile", "scale"],
        ["Y"],
        domain=operators.DOMAIN,
        weight_shape=weight_shape,
        tile_length=8,
        scale_length=8,
    )
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("X", x_shape), ("Y", ["y"] * len(x_shape)))
    ]
    tensors = [
        onnx.numpy_helper.from_array(np.ones(1, np.uint8), "tile"),
        onnx.numpy_helper.from_array(np.ones(1, np.float32), "scale"),
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], tensors)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(operators.DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports)
    with pytest.raises(onnx.shape_inference.InferenceError, match="where weight_shape asks for"):
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
