"""The kernel of quantize: the integers of ONNX Runtime for every float, by integers alone."""

import numpy as np
import onnxruntime
import pytest
from helpers.graphs import GraphBuilder
from helpers.kernel_layers import run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tvm import relax

from tbn_compile.passes.relax import Quantization
from tbn_compile.targets.mcu.compiler.c_source import write_functions
from tbn_compile.targets.mcu.compiler.kernels.quantize import (
    LowerQuantize,
    quantize_function,
    thresholds,
)

FORMS = [
    Quantization(float(np.float32(1 / 255)), -128, "int8"),
    Quantization(0.0123, 0, "uint8"),
    Quantization(1.0, 0, "int8"),
    Quantization(3e5, 200, "uint8"),
    Quantization(2.0**-20, 127, "int8"),
]


def onnx_runtime(x, form):
    graph = GraphBuilder()
    graph.input("x", [len(x)])
    scale = graph.weight("scale", np.float32(form.scale))
    zero_point = graph.weight("zero_point", np.array(form.zero_point, form.dtype))
    model = graph.model(graph.node("QuantizeLinear", ["x", scale, zero_point], "y"), rank=1)
    kind = TensorProto.INT8 if form.dtype == "int8" else TensorProto.UINT8
    model.graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(kind, [len(x)]))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def near_every_boundary(form):
    """Floats at, just below and just above the middle of each two integers; both signs."""
    bits = thresholds(form).astype(np.int64)
    around = np.concatenate([bits + step for step in (-2, -1, 0, 1, 2)]).astype(np.int32)
    x = around.view(np.float32)
    return np.concatenate([x, -x])


def assert_same(form, x):
    function = quantize_function(form, len(x))
    actual = run(function, np.ascontiguousarray(x).view(np.int32), thresholds(form))
    np.testing.assert_array_equal(actual, onnx_runtime(x, form))


@pytest.mark.parametrize("form", FORMS)
def test_boundaries_and_the_whole_range(form):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    within = rng.uniform(-300, 300, 20_000).astype(np.float32) * np.float32(form.scale)
    ties = (np.arange(-300, 300) + 0.5).astype(np.float32) * np.float32(form.scale)
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45], np.float32)
    x = np.concatenate([near_every_boundary(form), whole, within, ties, special])
    assert_same(form, x[~np.isnan(x)])


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-20, 1e20), st.integers(0, 255), st.sampled_from(["int8", "uint8"]))
def test_any_scale_and_zero_point(scale, zero_point, dtype):
    low = int(np.iinfo(dtype).min)
    form = Quantization(float(np.float32(scale)), zero_point + low, dtype)
    x = near_every_boundary(form)
    assert_same(form, x[np.isfinite(x)])


def test_lowers_what_is_computed_and_has_one_scale():
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        for scale in (np.float32(0.5), np.ones(3, np.float32), np.float32(1e35)):
            call = relax.op.quantize(x, relax.const(scale), relax.const(0, "int8"))
            builder.emit(call)
        constant = relax.const(np.ones(3, np.float32))
        last = builder.emit(relax.op.quantize(constant, relax.const(0.5), relax.const(0, "int8")))
        builder.emit_func_output(last)
    lowered = LowerQuantize()(builder.get())["main"]
    bindings = [binding.value for block in lowered.body.blocks for binding in block.bindings]
    names = [value.op.name for value in bindings if isinstance(value, relax.Call)]
    assert names == ["relax.call_tir", *["relax.quantize"] * 3]


def test_no_float_and_no_division():
    (function,) = write_functions({"quantize": quantize_function(FORMS[0], 9)}, {"quantize": 1})
    assert "float" not in function.text
    assert "/" not in function.text
