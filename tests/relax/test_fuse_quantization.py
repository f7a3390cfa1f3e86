"""FuseQuantization: dequantize, tiled call and quantize are one tiled call on integers."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from helpers.graphs import compile_proto
from helpers.quantization import quantized_example, run_unoptimized
from helpers.relax_calls import operators
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_strategies import conv_cases, gemm_cases
from relax_modules import ROW_SCALES, constant, conv, gemm, kernels, run
from runtime_models import make_model
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_compile.errors import ModelError
from tbn_compile.passes.relax import (
    CONV,
    GEMM,
    FuseActivation,
    FuseAffine,
    FuseQuantization,
    LowerTiledCalls,
    MoveDequantize,
    Quantization,
    Step,
    read_layer,
    tiled_binary_gemm,
)

INPUT = Quantization(0.5, -3, "int8")
TINY = Quantization(1e-60, 0, "int8")
OUTPUT = Quantization(0.25, 7, "uint8")
BIAS = Step("bias", operand=constant(*range(6)))
RELU = Step("clip", bounds=(0.0, float("inf")))
many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def dequantize(q, form=INPUT):
    return relax.op.dequantize(q, *constants(form))


def quantize(x, form=OUTPUT):
    return relax.op.quantize(x, *constants(form), out_dtype=form.dtype)


def constants(form):
    return relax.const(form.scale, "float32"), relax.const(form.zero_point, form.dtype)


@pytest.mark.parametrize(
    "layer",
    [
        lambda x, **forms: gemm(x, [BIAS, RELU], ROW_SCALES, **forms),
        lambda x, **forms: conv(x, [BIAS], **forms),
    ],
)
def test_fuses(layer):
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((2, 4, 3, 4), "int8")):
            with R.dataflow():
                x = dequantize(q)
                y = layer(x)
                z = quantize(y)
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(q: R.Tensor((2, 4, 3, 4), "int8")):
            with R.dataflow():
                z = layer(q, input_quantization=INPUT, output_quantization=OUTPUT)
                R.output(z)
            return z

    fused = FuseQuantization()(Before)
    tvm.ir.assert_structural_equal(fused, After)
    q = integers(INPUT, (2, 4, 3, 4))
    np.testing.assert_array_equal(run(fused, q), run(Before, q))


def test_a_result_that_stays_float():
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((3, 4), "int8")):
            with R.dataflow():
                x = dequantize(q)
                y = gemm(x, [BIAS])
                z = (y, quantize(y), x)
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(q: R.Tensor((3, 4), "int8")):
            with R.dataflow():
                x = dequantize(q)
                y = gemm(q, [BIAS], input_quantization=INPUT)
                z = (y, quantize(y), x)
                R.output(z)
            return z

    fused = FuseQuantization()(Before)
    tvm.ir.assert_structural_equal(fused, After)
    q = integers(INPUT, (3, 4))
    for actual, expected in zip(run(fused, q), run(Before, q), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_nothing_joins_the_epilogue_after_rounding():
    @I.ir_module
    class Module:
        @R.function
        def main(q: R.Tensor((3, 4), "int8")):
            with R.dataflow():
                y = gemm(q, input_quantization=INPUT, output_quantization=INPUT)
                z = R.nn.relu(R.add(y, R.const(1, "int8")))
                R.output(z)
            return z

    for fuse in (FuseActivation(), FuseAffine(), FuseQuantization()):
        tvm.ir.assert_structural_equal(fuse(Module), Module)


def scales_inside_rows(x):
    tile = relax.const(np.zeros(1, np.uint8))
    attributes = {"weight_shape": (6, 4), "tile_length": 7, "scale_length": 2}
    return tiled_binary_gemm(x, tile, relax.const(np.ones(12, np.float32)), **attributes)


@pytest.mark.parametrize(
    ("layer", "scale", "zero_point", "reason"),
    [
        (gemm, np.ones(4, np.float32), np.zeros(4, np.int8), "a scale per channel"),
        (gemm, np.float32(0.0), np.int8(0), "must be a positive float32"),
        (scales_inside_rows, np.float32(1.0), np.int8(0), "scale changes inside rows"),
    ],
)
def test_what_stays_float_says_why(layer, scale, zero_point, reason):
    @I.ir_module
    class Module:
        @R.function
        def main(q: R.Tensor((1, 4), "int8")):
            with R.dataflow():
                x = R.dequantize(q, relax.const(scale), relax.const(zero_point), axis=1)
                y = layer(x)
                z = quantize(y)
                R.output(z)
            return z

    assert_left(Module, reason)


def test_long_sums_stay_float():
    def wide(x):
        tile, scale = relax.const(np.zeros(1, np.uint8)), relax.const(np.ones(1, np.float32))
        attributes = {"weight_shape": (2, 2**24), "tile_length": 1, "scale_length": 2**25}
        return tiled_binary_gemm(x, tile, scale, **attributes)

    @I.ir_module
    class Module:
        @R.function
        def main(q: R.Tensor((1, 16777216), "int8")):
            with R.dataflow():
                x = dequantize(q)
                z = wide(x)
                R.output(z)
            return z

    assert_left(Module, "may exceed 32 bits")


def assert_left(module, reason):
    reasons = []
    tvm.ir.assert_structural_equal(FuseQuantization(reasons.append)(module), module)
    (given_reason,) = reasons
    assert reason in given_reason


def test_a_computed_scale_stays_float():
    @I.ir_module
    class Module:
        @R.function
        def main(q: R.Tensor((1, 4), "int8"), scale: R.Tensor((), "float32")):
            with R.dataflow():
                x = R.dequantize(q, scale, R.const(0, "int8"), axis=1)
                z = gemm(x)
                R.output(z)
            return z

    assert_left(Module, "the scale or zero point of its integers is computed")


@pytest.mark.parametrize(
    ("forms", "message"),
    [
        ({"input_quantization": Quantization(1.0, 0, "uint8")}, "X is int8"),
        ({"input_quantization": Quantization(1.0, 128, "int8")}, "zero point 128 must be"),
        ({"input_quantization": Quantization(-1.0, 0, "int8")}, "positive float32"),
        ({"input_quantization": Quantization(1.0, 0, "int16")}, "int16"),
        ({}, "X is int8 and scale is float32"),
        (
            {"input_quantization": INPUT, "output_quantization": Quantization(1e-60, 0, "int8")},
            "1e",
        ),
    ],
)
def test_what_means_nothing_is_refused(forms, message):
    x = relax.Var("x", relax.TensorType((3, 4), "int8"))
    with pytest.raises(ModelError, match=message):
        gemm(x, **forms)


def test_integers_out_of_floats_are_refused():
    x = relax.Var("x", relax.TensorType((3, 4), "float32"))
    with pytest.raises(ModelError, match="needs an X of integers"):
        gemm(x, output_quantization=OUTPUT)


def test_sums_are_int32():
    @I.ir_module
    class Module:
        @R.function
        def main(q: R.Tensor((3, 4), "int8")):
            z = gemm(q, input_quantization=INPUT)
            return z

    (kernel,) = kernels(LowerTiledCalls()(Module)).values()
    (product,) = kernel.body.block.alloc_buffers
    assert (product.name, str(product.dtype)) == ("product", "int32")


forms = st.builds(
    lambda dtype, scale, zero_point: Quantization(
        float(np.float32(scale)), zero_point + 128 * (dtype == "uint8"), dtype
    ),
    st.sampled_from(["int8", "uint8"]),
    st.floats(1e-3, 0.2),
    st.integers(-128, 127),
)


@many
@given(gemm_cases(), forms, forms, st.integers(0, 2**32 - 1))
def test_gemm(case, before, after, seed):
    assert_right(*case, before, after, seed)


@many
@given(conv_cases(), forms, forms, st.integers(0, 2**32 - 1))
def test_conv(case, before, after, seed):
    assert_right(*case, before, after, seed)


def assert_right(layer, x, before, after, seed):
    """Against numpy in float64, but where that is too near to the middle of two integers."""
    model = make_model(layer, x_shape=list(x.shape))
    for _ in x.shape:
        model.graph.output[0].type.tensor_type.shape.dim.add()
    imported = from_onnx(model)["main"]
    float_layer = read_layer(imported.body.blocks[0].bindings[0].value)
    if float_layer.not_integer:
        return
    q = integers(before, x.shape, seed)
    variable = relax.Var("q", relax.TensorType(q.shape, before.dtype))
    quantized = replace(
        float_layer, x=variable, input_quantization=before, output_quantization=after
    )
    builder = relax.BlockBuilder()
    with builder.function("main", [variable]):
        builder.emit_func_output(builder.emit(quantized.call()))
    actual = run(builder.get(), q)
    number = before.scale * (q.astype(np.float64) - before.zero_point)
    exact = layer.expected(number) / after.scale + after.zero_point
    off_middle = np.abs(exact - np.floor(exact) - 0.5) > 1e-3
    expected = np.clip(np.rint(exact), *after.limits)
    assert actual.shape == expected.shape
    assert (actual == expected)[off_middle].all()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("name", "layers"), [("mlp", [GEMM] * 2), ("cnn", [CONV] * 3 + [GEMM])])
def test_examples_from_onnx_runtime_run_in_integers(name, layers, dtype, per_channel, tmp_path):
    model, images = quantized_example(name, dtype, per_channel=per_channel)
    reasons = []
    passes = [MoveDequantize(), FuseActivation(), FuseQuantization(reasons.append)]
    module = from_onnx(
        compile_proto(model, tmp_path).model, shape_dict={"input": list(images.shape)}
    )
    module = tvm.transform.Sequential(passes)(module)
    assert not reasons
    names = operators(module)
    assert [each for each in names if each in (GEMM, CONV)] == layers
    assert (names[0], names[-1]) == ("relax.quantize", "relax.dequantize")
    assert sum("quantize" in each for each in names) == 2
    (expected,) = run_unoptimized(model, {"input": images})
    np.testing.assert_array_equal(run(module, images), expected)


def integers(form, shape, seed=0):
    low, high = form.limits
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(form.dtype)
