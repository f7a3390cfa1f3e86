"""CPU kernels of every vector width that runs here, against numpy: expand, then multiply."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_strategies import conv_cases, gemm_cases
from runtime_models import Layer, make_model
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from tbn_compile.passes.relax import Step, tiled_binary_gemm
from tbn_compile.targets.compiled.processor import architecture, present_features
from tbn_compile.targets.llvm import tiled_layers
from tbn_compile.targets.llvm.lowering import lower
from tbn_compile.targets.llvm.processors import (
    NATIVE,
    can_permute,
    find_processor,
    tvm_target,
    vector_lanes,
)

TOLERANCES = {"float32": 5e-7, "float16": 1e-3, "bfloat16": 8e-3}
NAMES = {"x86_64": ("x86-64", "x86-64-v3", "x86-64-v4")}
PROCESSORS = [
    processor
    for processor in map(find_processor, NAMES.get(architecture(), (NATIVE,)))
    if present_features() >= set(processor.features)
]
processors = st.sampled_from(PROCESSORS)
many = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(gemm_cases(), processors, st.booleans(), st.sampled_from(sorted(TOLERANCES)))
def test_gemm(case, processor, tables, dtype):
    assert_right(*case, processor, tables, dtype)


@many
@given(conv_cases(), processors, st.booleans(), st.sampled_from(sorted(TOLERANCES)))
def test_conv(case, processor, tables, dtype):
    assert_right(*case, processor, tables, dtype)


@many
@given(gemm_cases(), processors, st.booleans())
def test_gemm_of_dynamic_shape(case, processor, tables):
    layer, x = case
    dynamic = [f"d{axis}" for axis in range(x.ndim - 1)]
    assert_right(layer, x, processor, tables, shape=[*dynamic, x.shape[-1]])


@many
@given(conv_cases(), processors, st.booleans())
def test_conv_of_dynamic_shape(case, processor, tables):
    layer, x = case
    dynamic = [f"d{axis}" for axis in range(x.ndim - 2)]
    assert_right(layer, x, processor, tables, shape=["n", x.shape[1], *dynamic])


@pytest.mark.parametrize("rows", [1, 3, 8, 13, 29])
@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda each: each.name)
def test_aligned_layers_of_many_rows(rows, processor):
    rng = np.random.default_rng(rows)
    layer = Layer(
        (192, 70), rng.integers(0, 2, 64 * 70), np.array([0.5]), 1, bias=rng.normal(size=192)
    )
    x = rng.normal(size=(rows, 70)).astype(np.float32)
    for tables in (False, True):
        assert_right(layer, x, processor, tables)


def test_residuals_of_a_batched_gemm():
    rng = np.random.default_rng(0)
    x, residual = (
        relax.Var(n, relax.TensorType([2, 3, k], "float32")) for n, k in (("x", 8), ("r", 6))
    )
    bits = rng.integers(0, 2, 24).astype(np.uint8)
    tile, scale = np.packbits(bits, bitorder="little"), np.array([2.0], np.float32)
    builder = relax.BlockBuilder()
    with builder.function("main", [x, residual]):
        with builder.dataflow():
            call = tiled_binary_gemm(
                x, relax.const(tile), relax.const(scale), [Step("residual", operand=residual)],
                weight_shape=(6, 8), tile_length=24, scale_length=1,
            )  # fmt: skip
            result = builder.emit_output(builder.emit(call))
        builder.emit_func_output(result)
    values = [rng.normal(size=(2, 3, k)).astype(np.float32) for k in (8, 6)]
    weight = 2.0 * (np.resize(bits, (6, 8)) * 2.0 - 1)
    actual = run(builder.get(), find_processor(), values)
    np.testing.assert_allclose(actual, values[0] @ weight.T + values[1], rtol=1e-5, atol=1e-5)


def assert_right(layer, x, processor, tables, dtype="float32", shape=None):
    model = make_model(layer, dtype, x_shape=shape or list(x.shape))
    for _ in x.shape:
        model.graph.output[0].type.tensor_type.shape.dim.add()
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    module = from_onnx(model, keep_params_in_input=False)
    with pytest.MonkeyPatch.context() as patch:
        if tables:  # also where they do not pay
            for name in ("_FEWEST_VECTORS", "_FEWEST_USES", "_FEWEST_CHANNELS"):
                patch.setattr(tiled_layers, name, 1)
        actual = run(module, processor, [x])
    bias = None if layer.bias is None else layer.bias.astype(kind).astype(np.float64)
    layer = replace(layer, scale=layer.scale.astype(kind).astype(np.float64), bias=bias)
    x = x.astype(kind).astype(np.float64)
    expected = layer.expected(x)
    assert actual.shape == expected.shape
    assert (np.abs(actual - expected) <= TOLERANCES[dtype] * largest_sums(layer, x)).all()


def run(module, processor, inputs):
    target = tvm_target(processor)
    lowered = lower(module, target, vector_lanes(processor), can_permute(processor))
    machine = relax.VirtualMachine(tvm.compile(lowered, target=target), tvm.cpu())
    return machine["main"](*map(tvm.runtime.tensor, inputs)).numpy()


def largest_sums(layer, x):
    """What each output would be if nothing cancelled: rounding errors are relative to it."""
    positive = replace(
        layer,
        bits=np.ones_like(layer.bits),
        scale=np.abs(layer.scale),
        bias=None if layer.bias is None else np.abs(layer.bias),
        attributes={k: v for k, v in layer.attributes.items() if "activation" not in k},
    )
    return positive.expected(np.abs(x)) + 1e-6
