"""Import, lowering and code for the host against numpy: expand the weight, then multiply."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_strategies import conv_cases, gemm_cases
from relax_modules import run_onnx
from runtime_models import Layer, largest_sums, make_model

TOLERANCES = {"float32": 5e-7, "float16": 1e-3, "bfloat16": 8e-3}
dtypes = st.sampled_from(sorted(TOLERANCES))
many = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(gemm_cases(), dtypes)
def test_gemm(case, dtype):
    assert_right(*case, dtype)


@many
@given(conv_cases(), dtypes)
def test_conv(case, dtype):
    assert_right(*case, dtype)


@pytest.mark.parametrize(
    ("shape", "length", "offset", "scale_offset"),
    [((3, 2), 1, 0, 3), ((3, 2), 5, 2, 5), ((3, 8), 32, 29, 0)],
)
def test_positions_that_tvm_simplifies_wrongly(shape, length, offset, scale_offset):
    """See `_shifted_division` and `Signs.apply`."""
    bits = np.random.default_rng(0).integers(0, 2, length).astype(np.uint8)
    x = 10.0 ** np.arange(-4, shape[1] - 4, dtype=np.float32)[None]
    layer = Layer(shape, bits, np.array([1.0, 2.0, 4.0, 8.0]), 2, offset, scale_offset)
    assert_right(layer, x, "float32")


@settings(parent=many, max_examples=20)
@given(gemm_cases(), st.integers(1, 3))
def test_gemm_of_dynamic_batch_and_inputs(case, batch):
    layer, x = case
    x = np.repeat(x[None], batch, axis=0)
    assert_right(layer, x, "float32", [f"d{axis}" for axis in range(x.ndim)])


@settings(parent=many, max_examples=20)
@given(conv_cases())
def test_conv_of_dynamic_shape(case):
    layer, x = case
    assert_right(layer, x, "float32", [f"d{axis}" for axis in range(x.ndim)])


def assert_right(layer, x, dtype, shape=None):
    model = make_model(layer, dtype, x_shape=shape or list(x.shape))
    for _ in x.shape:
        model.graph.output[0].type.tensor_type.shape.dim.add()
    actual = run_onnx(model, x)
    layer, x = rounded(layer, dtype), x.astype(numpy_type(dtype)).astype(np.float64)
    expected = layer.expected(x)
    assert actual.shape == expected.shape
    assert (np.abs(actual - expected) <= TOLERANCES[dtype] * largest_sums(layer, x)).all()


def rounded(layer, dtype):
    kind = numpy_type(dtype)
    bias = None if layer.bias is None else layer.bias.astype(kind).astype(np.float64)
    return replace(layer, scale=layer.scale.astype(kind).astype(np.float64), bias=bias)


def numpy_type(name):
    return np.dtype(getattr(ml_dtypes, name, name))
