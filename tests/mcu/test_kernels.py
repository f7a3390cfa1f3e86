"""Kernels for small cores against numpy: expand the weight, then multiply."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.kernel_layers import every_candidate, run, tiled_layer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from layer_strategies import conv_cases, gemm_cases
from runtime_models import Layer

TOLERANCE = 5e-7
many = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(gemm_cases(), st.booleans(), st.data())
def test_gemm(case, residual, data):
    assert_right(*case, residual, data)


@many
@given(conv_cases(), st.booleans(), st.data())
def test_conv(case, residual, data):
    assert_right(*case, residual, data)


@many
@given(conv_cases(), st.booleans(), st.data())
def test_pooled_conv(case, residual, data):
    layer, x = case
    assume(x.size > 0)
    results = expected(layer, x).shape[2:]
    pool = tuple(data.draw(st.integers(1, min(3, extent)), "pool") for extent in results)
    assert_right(layer, x, residual, data, pool)


@pytest.mark.parametrize("rows_of_scale", [2, 4, 8])
def test_one_scale_serves_several_copies_of_a_row(rows_of_scale):
    layer = Layer(
        weight_shape=(16, 4),
        bits=np.array([1, 0, 0, 1], dtype=np.uint8),
        scale=np.arange(1, 1 + 16 // rows_of_scale) / 4,
        scale_length=4 * rows_of_scale,
    )
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for candidate in every_candidate(tiled_layer(layer, x.shape)):
        assert_close(candidate, layer, x, None)


def assert_right(layer, x, residual, data, pool=()):
    assume(x.size > 0)
    call = tiled_layer(layer, x.shape, residual, pool)
    candidate = data.draw(st.sampled_from(every_candidate(call)), "kernel")
    added = np.random.default_rng(5).normal(size=expected(layer, x).shape).astype(np.float32)
    assert_close(candidate, layer, x, added if residual else None, pool)


def pooled(values, pool):
    """The greatest element of each window; elements beyond the last whole one are dropped."""
    for axis, size in enumerate(pool, start=2):
        whole = values.shape[axis] // size
        values = np.take(values, range(whole * size), axis)
        windows = values.reshape(*values.shape[:axis], whole, size, *values.shape[axis + 1 :])
        values = windows.max(axis + 1)
    return values


def assert_close(candidate, layer, x, residual, pool=()):
    function, constants = candidate.build()
    operands = [] if residual is None else [residual]
    if layer.bias is not None:
        operands.append(layer.bias.astype(np.float32))
    actual = run(function, x, *constants, *operands)
    layer = replace(layer, scale=layer.scale.astype(np.float32).astype(np.float64))
    wanted = pooled(expected(layer, x, residual), pool)
    assert actual.shape == wanted.shape
    allowed = TOLERANCE * pooled(largest_sums(layer, x, residual), pool)
    assert (np.abs(actual - wanted) <= allowed).all()


def expected(layer, x, residual=None):
    y = without_activation(layer).expected(x.astype(np.float64))
    y = y if residual is None else y + residual
    low = layer.attributes.get("activation_min", -np.inf)
    return np.clip(y, low, layer.attributes.get("activation_max", np.inf))


def largest_sums(layer, x, residual):
    """What each output would be if nothing cancelled: rounding errors are relative to it."""
    positive = replace(
        without_activation(layer),
        bits=np.ones_like(layer.bits),
        scale=np.abs(layer.scale),
        bias=None if layer.bias is None else np.abs(layer.bias),
    )
    added = None if residual is None else np.abs(residual)
    return expected(positive, np.abs(x), added) + 1e-6


def without_activation(layer):
    kept = {k: v for k, v in layer.attributes.items() if "activation" not in k}
    return replace(layer, attributes=kept)
