"""Conv → TiledBinaryConv."""

import numpy as np
import pytest
from helpers.graphs import GraphBuilder, attribute, compile_and_compare
from helpers.weights import tiled_array
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def conv(kernel, spatial, *, group=1, bias=None, dtype="float32", channels=None, **attributes):
    graph = GraphBuilder()
    channels = kernel.shape[1] * group if channels is None else channels
    inputs = [
        graph.input("x", [2, channels, *spatial], dtype),
        graph.weight("w", kernel.astype(dtype)),
    ]
    if bias is not None:
        inputs.append(graph.weight("b", bias.astype(dtype)))
    graph.node("Conv", inputs, "y", group=group, **attributes)
    return graph.model("y", dtype=dtype, rank=kernel.ndim)


CASES = {
    "1-D": ((16, 8, 3), (20,), {}),
    "2-D": ((16, 8, 3, 3), (9, 11), {}),
    "3-D": ((16, 4, 3, 3, 3), (5, 6, 7), {}),
    "1x1": ((16, 32, 1, 1), (7, 7), {}),
    "groups": ((16, 4, 3, 3), (9, 9), {"group": 4}),
    "depthwise": ((32, 1, 3, 3), (9, 9), {"group": 32}),
    "strides": ((16, 8, 3, 3), (9, 12), {"strides": [2, 3]}),
    "dilations": ((16, 8, 3, 3), (12, 12), {"dilations": [2, 3]}),
    "pads": ((16, 8, 3, 3), (9, 9), {"pads": [0, 1, 2, 3]}),
    "pads 1-D": ((16, 8, 5), (9,), {"pads": [3, 1], "strides": [2]}),
    "everything": (
        (16, 4, 3, 2),
        (13, 14),
        {"group": 2, "strides": [2, 1], "dilations": [1, 3], "pads": [2, 0, 1, 3]},
    ),
    "same upper": ((16, 8, 3, 3), (9, 10), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((16, 8, 2, 4), (9, 10), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "valid": ((16, 8, 3, 3), (9, 10), {"auto_pad": "VALID", "strides": [2, 2]}),
    "not set": ((16, 8, 3, 3), (9, 10), {"auto_pad": "NOTSET", "pads": [1, 1, 1, 1]}),
    "same upper, odd": ((16, 8, 4, 4), (7, 7), {"auto_pad": "SAME_UPPER", "strides": [3, 3]}),
    "stride past the kernel": (
        (16, 8, 1, 1),
        (9, 9),
        {"auto_pad": "SAME_UPPER", "strides": [4, 4]},
    ),
    "kernel_shape": ((16, 8, 3, 3), (9, 9), {"kernel_shape": [3, 3]}),
}


@pytest.mark.parametrize(("shape", "spatial", "attributes"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_every_attribute(tmp_path, shape, spatial, attributes, has_bias):
    kernel = tiled_array(shape, int(np.prod(shape)) // 4, 0.3)
    bias = normal(shape[0]) if has_bias else None
    compiled = compile_and_compare(
        conv(kernel, spatial, bias=bias, **attributes), tmp_path, lowered=1
    )
    assert compiled.operators == ["TiledBinaryConv"]
    node = compiled.tiled[0]
    assert attribute(node, "weight_shape") == list(shape)
    assert (attribute(node, "pads") is None) != (attribute(node, "auto_pad") is None)
    written = {each.name for each in node.attribute}
    assert {"dilations", "group", "strides", "offset", "scale_offset"} <= written


@pytest.mark.parametrize("spatial", [("height", "width"), (None, 9)])
@pytest.mark.parametrize("padding", [{"auto_pad": "SAME_LOWER"}, {"pads": [1, 1, 0, 0]}])
def test_dynamic_extents(tmp_path, spatial, padding):
    kernel = tiled_array((16, 8, 3, 3), 96)
    compile_and_compare(
        conv(kernel, spatial, strides=[2, 1], **padding),
        tmp_path,
        lowered=1,
        sizes={"height": 8, "width": 7, "": 6},
    )


def test_half_precision(tmp_path):
    kernel = tiled_array((16, 8, 3, 3), 96, 0.1)
    compile_and_compare(conv(kernel, (9, 9), dtype="float16", bias=normal(16)), tmp_path, lowered=1)


def test_flipped_rows_of_a_folded_normalisation(tmp_path):
    gamma = normal(16)
    kernel = tiled_array((16, 8, 3, 3), 288) * gamma[:, None, None, None]
    compiled = compile_and_compare(conv(kernel, (9, 9), bias=normal(16)), tmp_path, lowered=1)
    (layer,) = compiled.report.lowered
    assert (layer.tiles, layer.scaling) == (4.0, "row")


def test_a_computed_bias_is_left_alone(tmp_path):
    graph = GraphBuilder()
    kernel = graph.weight("w", tiled_array((16, 8, 3, 3), 96))
    graph.node("Conv", [graph.input("x", [1, 8, 9, 9]), kernel, graph.input("b", [16])], "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=0)
    assert compiled.reasons == {"n_y": "the bias is a graph input"}


@pytest.mark.parametrize(("operator", "shape"), [("ConvTranspose", (8, 16, 3, 3))])
def test_other_operators_are_left_alone_with_the_reason(tmp_path, operator, shape):
    graph = GraphBuilder()
    kernel = graph.weight("w", tiled_array(shape, 96))
    graph.node(operator, [graph.input("x", [1, 8, 9, 9]), kernel], "y")
    compiled = compile_and_compare(graph.model("y", rank=4), tmp_path, lowered=0)
    assert compiled.reasons == {
        "n_y": "ConvTranspose is not lowered; only Gemm, MatMul and Conv are"
    }


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_convolution(tmp_path, data):
    axes = data.draw(st.integers(1, 3))
    group = data.draw(st.sampled_from([1, 2, 4]))
    small = st.integers(1, 3)
    kernel = [data.draw(small) for _ in range(axes)]
    shape = (group * data.draw(st.integers(2, 4)), data.draw(st.integers(2, 3)), *kernel)
    attributes = {
        "strides": [data.draw(small) for _ in range(axes)],
        "dilations": [data.draw(small) for _ in range(axes)],
    }
    mode = data.draw(st.sampled_from(["pads", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if mode == "pads":
        attributes["pads"] = [data.draw(st.integers(0, 2)) for _ in range(2 * axes)]
    else:
        attributes["auto_pad"] = mode
    if mode.startswith("SAME"):
        attributes["dilations"] = [1] * axes
    spatial = [data.draw(st.integers(7, 9)) for _ in range(axes)]
    size = int(np.prod(shape))
    length = data.draw(st.sampled_from([size, size // 2, size // group]))
    weight = tiled_array(shape, max(2, length), 0.5, seed=data.draw(st.integers(0, 99)))
    if (weight > 0).all() or (weight < 0).all():
        return
    lowered = 1 if size >= 32 else None
    model = conv(weight, spatial, group=group, **attributes)
    if lowered:
        compile_and_compare(model, tmp_path, lowered=1)
