"""Kernels of integer activations: int32 sums and a rescaling in fixed point, against numpy."""

import subprocess
from dataclasses import replace

import numpy as np
import pytest
from helpers.kernel_layers import run, tiled_layer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_strategies import conv_cases, gemm_cases
from runtime_models import Layer
from tvm import relax

from tbn_compile.errors import ModelError
from tbn_compile.passes.relax import Quantization, Step
from tbn_compile.passes.relax.distinct_rows import RunScale, distinct_rows
from tbn_compile.passes.relax.tiled_layer import constant_of
from tbn_compile.targets.mcu.compiler.c_source import declaration, extremes, write_functions
from tbn_compile.targets.mcu.compiler.kernels import tiled_kernel
from tbn_compile.targets.mcu.compiler.kernels.candidates import candidates
from tbn_compile.targets.mcu.compiler.kernels.cost_model import Costs
from tbn_compile.targets.mcu.compiler.kernels.integer import integer_function, rescaling
from tbn_compile.targets.mcu.cores import CORES

FLAGS = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"]
some = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
forms = st.builds(
    lambda dtype, scale, zero_point: Quantization(
        float(np.float32(scale)), zero_point + 128 * (dtype == "uint8"), dtype
    ),
    st.sampled_from(["int8", "uint8"]),
    st.floats(1e-3, 0.2),
    st.one_of(st.just(-128), st.integers(-128, 127)),
)
INPUT = Quantization(0.02, 3, "int8")
OUTPUT = Quantization(0.25, 100, "uint8")


@some
@given(gemm_cases(), forms, st.sampled_from(["int8", "uint8", "float32"]), st.integers(0, 99))
def test_gemm(case, before, result, seed):
    assert_right(*case, before, result, seed)


@some
@given(conv_cases(), forms, st.sampled_from(["int8", "uint8", "float32"]), st.integers(0, 99))
def test_conv(case, before, result, seed):
    assert_right(*case, before, result, seed)


def assert_right(layer, x, before, result, seed):
    """Every kernel gives the nearest integers, but where numpy is unsure which is nearer."""
    layer.scale = layer.scale.astype(np.float32).astype(np.float64)
    q = integers(before, x.shape, seed)
    expected = layer.expected(before.scale * (q.astype(np.float64) - before.zero_point))
    after = None if result == "float32" else form_for(expected, result)
    call = integer_layer(layer, x.shape, before, after) if x.size else None
    if call is None:
        return
    function = integer_function(call, distinct_rows(call, constant_of(call.tile)))
    built = [candidate.build() for candidate in candidates(function, Costs(1, 8))]
    operands = operands_of(function.layer)
    for primitive, constants in built:
        actual = run(primitive, q, *constants, *operands)
        assert actual.shape == expected.shape
        assert_nearest(actual, expected, after)


def form_for(expected, dtype):
    """A quantization that most of the results, but not all, lie within."""
    low, high = np.quantile(np.append(expected, 0.0), [0.01, 0.99])
    scale = float(np.float32(max(high - low, 1e-3) / 255))
    lowest = int(np.iinfo(dtype).min)
    return Quantization(scale, int(np.clip(round(-low / scale), 0, 255)) + lowest, dtype)


def assert_nearest(actual, expected, form):
    if form is None:
        assert np.abs(actual - expected).max() <= 2e-6 * max(1, np.abs(expected).max())
        return
    exact = expected / form.scale + form.zero_point
    nearest = np.clip(np.rint(exact), *form.limits)
    is_sure = np.abs(exact - np.floor(exact) - 0.5) > 1e-3
    assert (actual == nearest)[is_sure].all()


def integer_layer(layer, shape, before, after):
    """A `Layer` of `tests/runtime` that takes integers; None if its scale changes inside rows."""
    call = tiled_layer(layer, shape)
    if call.not_integer or distinct_rows(call, constant_of(call.tile)) is None:
        return None
    x = relax.Var("x", relax.TensorType(shape, before.dtype))
    return replace(call, x=x, input_quantization=before, output_quantization=after)


def integers(form, shape, seed=0):
    low, high = form.limits
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(form.dtype)


def operands_of(layer):
    return [constant_of(s.operand) for s in layer.epilogue if s.operand is not None]


def rows(scale=(0.5, 0.25), **attributes):
    """16 outputs of 40 inputs, 4 rows distinct."""
    bits = np.random.default_rng(0).integers(0, 2, 160).astype(np.uint8)
    bias = np.linspace(-3, 3, 16)
    return Layer((16, 40), bits, np.array(scale), 40, bias=bias, attributes=attributes)


def test_the_bias_is_no_operand_in_fixed_point():
    kernel = tiled_kernel(integer_layer(rows(), (2, 40), INPUT, OUTPUT), "balanced", CORES["c"])
    assert kernel.operands == ()
    assert {array.dtype.name for array in kernel.constants} <= {
        "uint8",
        "uint16",
        "uint32",
        "int32",
    }


def test_the_bias_is_an_operand_of_a_float_result():
    call = integer_layer(rows(), (2, 40), INPUT, None)
    kernel = tiled_kernel(call, "balanced", CORES["c"])
    assert [operand.ty.shape.values[0] for operand in kernel.operands] == [16]


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh"])
def test_other_activations_are_computed_in_float(kind):
    call = integer_layer(rows(), (2, 40), INPUT, OUTPUT).with_step(Step(kind))
    kernel = tiled_kernel(call, "balanced", CORES["c"])
    q = integers(INPUT, (2, 40))
    actual = run(kernel.function, q, *kernel.constants, *operands_of(call))
    x = rows().expected(INPUT.scale * (q.astype(np.float64) - INPUT.zero_point))
    inner = 0.7978845608028654 * (x + 0.044715 * x**3)
    exact = x / 2 * (1 + np.tanh(inner)) / OUTPUT.scale + OUTPUT.zero_point
    assert np.abs(actual - np.clip(exact, *OUTPUT.limits)).max() <= 0.51


def test_clamps_hold_in_integers():
    layer = rows(activation_min=-1.0, activation_max=2.0)
    kernel = tiled_kernel(integer_layer(layer, (9, 40), INPUT, OUTPUT), "balanced", CORES["c"])
    q = integers(INPUT, (9, 40))
    actual = run(kernel.function, q, *kernel.constants)
    assert (actual.min(), actual.max()) == (100 - 4, 100 + 8)


def test_results_too_large_for_fixed_point_are_computed_in_float():
    factor = RunScale(np.array([1e6]), 16)
    assert rescaling(factor, np.zeros(16), 2**20, (-128, 127), "int8") is None
    assert rescaling(RunScale(np.array([np.inf]), 16), np.zeros(16), 9, (0, 1), "int8") is None
    call = integer_layer(rows(), (2, 40), INPUT, Quantization(1e-9, 0, "int8"))
    q = integers(INPUT, (2, 40))
    kernel = tiled_kernel(call, "balanced", CORES["c"])
    actual = run(kernel.function, q, *kernel.constants, *operands_of(call))
    assert set(np.unique(actual)) == {-128, 127}


def test_floats_are_refused():
    call = tiled_layer(rows(), (2, 40))
    with pytest.raises(ModelError, match="need an integer activation"):
        integer_function(call, distinct_rows(call, constant_of(call.tile)))


CASES = {
    "rows": (rows(activation_min=0.0), (1, 40)),
    "one scale": (rows((0.5,)), (2, 40)),
    "image": (
        Layer((8, 1, 3, 3), np.tile([1, 0, 1, 1], 9), np.ones(1), 99, attributes={"pads": [1] * 4}),
        (1, 1, 9, 9),
    ),
    "channels": (
        Layer((8, 12, 3, 3), np.tile([1, 0, 1, 1], 108), np.ones(8), 108, bias=np.ones(8)),
        (1, 12, 6, 6),
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    functions = {}
    for number, (layer, shape) in enumerate(CASES.values()):
        for output in (OUTPUT, replace(OUTPUT, dtype="int8", zero_point=-128), None):
            call = integer_layer(layer, shape, INPUT, output)
            function = integer_function(call, distinct_rows(call, constant_of(call.tile)))
            for candidate in candidates(function, Costs(1, 8)):
                functions[f"case{number}_{len(functions)}"] = candidate.build()[0]
    lines = ["#include <stdint.h>", "#include <string.h>", "#include <math.h>"]
    written = write_functions(functions, dict.fromkeys(functions, 1))
    lines += extremes("".join(function.text for function in written))
    for function in written:
        lines += [declaration(function), function.text]
    path = tmp_path_factory.mktemp("kernels") / "kernels.c"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-none-eabi-gcc"])
def test_the_c_compiles_without_a_warning(source, compiler):
    command = [compiler, *FLAGS, "-c", source, "-o", source.with_suffix(f".{compiler}.o")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_fixed_point_needs_no_float_and_no_division(source):
    call = integer_layer(rows(), (1, 40), INPUT, OUTPUT)
    kernel = tiled_kernel(call, "balanced", CORES["cortex-m0plus"])
    (function,) = write_functions({"kernel": kernel.function}, {"kernel": 1})
    assert "float" not in function.text
    assert "/" not in function.text
