"""CPU kernels of every vector width that runs here, against numpy: expand, then multiply."""

import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_strategies import conv_cases, gemm_cases
from runtime_models import Layer, largest_sums, make_model
from tvm import relax, tirx
from tvm.relax.frontend.onnx import from_onnx

from tbn_compile.passes.relax import Step, tiled_binary_conv, tiled_binary_gemm
from tbn_compile.targets.compiled.llvm_processors import (
    NATIVE,
    can_permute,
    find_processor,
    tvm_target,
    vector_lanes,
)
from tbn_compile.targets.compiled.processor import architecture, present_features
from tbn_compile.targets.llvm import tiled_layers
from tbn_compile.targets.llvm.kernels import Shape, choose_schedule
from tbn_compile.targets.llvm.lowering import lower

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


STEPPED = [
    ((10, 64), 160, (160, 0)),  # the scale changes with the tile, in the middle of a row
    ((70, 33), 77, (330, 5)),
    ((10, 6, 3, 3), 135, (135, 0)),
    ((33, 5, 2, 1), 11, (50, 7)),
]


@pytest.mark.parametrize(("shape", "tile_length", "run"), STEPPED)
@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda each: each.name)
def test_scales_that_change_inside_rows(shape, tile_length, run, processor, monkeypatch):
    rng = np.random.default_rng(0)
    length, offset = run
    count = -(-math.prod(shape) // length) + 1
    layer = Layer(
        shape, rng.integers(0, 2, tile_length), rng.uniform(1, 1.5, count), length, 0, offset,
        rng.normal(size=shape[0]), {"activation_min": 0.0},
    )  # fmt: skip
    monkeypatch.setattr(tiled_layers, "lower_call", None)  # no portable kernel
    for batch in (1, 3, 11):
        x = rng.normal(size=(batch, shape[1], *(5,) * (len(shape) - 2))).astype(np.float32)
        assert_right(layer, x, processor, tables=True)


def test_steps_that_cost_precision_take_the_portable_kernel(monkeypatch):
    layer = Layer((2, 64), np.ones(128, int), np.array([1e4, 1e-3]), 32)
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    lowered = []
    portable = tiled_layers.lower_call
    monkeypatch.setattr(
        tiled_layers, "lower_call", lambda *call: lowered.append(call) or portable(*call)
    )
    assert_right(layer, x, find_processor(), tables=False)
    assert lowered


@pytest.mark.parametrize("far", [{"dilations": [2**27]}, {"strides": [2**27 - 1]}])
def test_windows_too_far_apart_for_a_table(far):
    shape = Shape(
        rows=4, channels=3, kernel=(2,), strides=tuple(far.get("strides", [1])),
        dilations=tuple(far.get("dilations", [2**27 - 2])), outputs=(None,), lanes=16,
    )  # fmt: skip
    assert choose_schedule(shape) is None


def test_infinity_times_a_missing_term_is_no_nan():
    layer = Layer((10, 64), np.ones(160, int), np.linspace(1, 1.3, 5), 160)
    x = np.full((1, 64), np.inf, np.float32)
    module = from_onnx(
        with_result_shape(make_model(layer, "float32", x_shape=[1, 64]), 2),
        keep_params_in_input=False,
    )
    assert (run(module, find_processor(), [x])[0, :2] == np.inf).all()


@pytest.mark.parametrize("epilogue", ["residual", "none"])
@pytest.mark.parametrize("spatial", [(7, 9), ("h", "w")])
def test_kernels_of_one_tap(epilogue, spatial):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, 6 * 5).astype(np.uint8)
    shapes = [("n", 5, *spatial), ("n", 12, *spatial)]
    known = {"n": 2, "h": 7, "w": 9}
    symbols = {name: tirx.Var(name, "int64") for name in known}
    x, residual = (
        relax.Var(name, relax.TensorType([symbols.get(e, e) for e in shape], "float32"))
        for name, shape in zip("xr", shapes, strict=True)
    )
    steps = [Step("residual", operand=residual)] if epilogue == "residual" else []
    tile, scale = np.packbits(bits, bitorder="little"), np.array([2.0], np.float32)
    builder = relax.BlockBuilder()
    with builder.function("main", [x, residual]):
        with builder.dataflow():
            call = tiled_binary_conv(
                x, relax.const(tile), relax.const(scale), steps,
                weight_shape=(12, 5, 1, 1), tile_length=30, scale_length=1,
            )  # fmt: skip
            result = builder.emit_output(builder.emit(call))
        builder.emit_func_output(result)
    values = [
        rng.normal(size=[known.get(e, e) for e in shape]).astype(np.float32) for shape in shapes
    ]
    weight = 2.0 * (np.resize(bits, (12, 5)) * 2.0 - 1)
    expected = np.einsum("oc,nchw->nohw", weight, values[0])
    if steps:
        expected += values[1]
    actual = run(builder.get(), find_processor(), values)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def assert_right(layer, x, processor, tables, dtype="float32", shape=None):
    model = with_result_shape(make_model(layer, dtype, x_shape=shape or list(x.shape)), x.ndim)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    module = from_onnx(model, keep_params_in_input=False)
    with pytest.MonkeyPatch.context() as patch:
        if tables:  # also where they do not pay
            for name in ("_FEWEST_VECTORS",):
                patch.setattr(tiled_layers, name, 1)
        actual = run(module, processor, [x])
    bias = None if layer.bias is None else layer.bias.astype(kind).astype(np.float64)
    layer = replace(layer, scale=layer.scale.astype(kind).astype(np.float64), bias=bias)
    x = x.astype(kind).astype(np.float64)
    expected = layer.expected(x)
    assert actual.shape == expected.shape
    assert (np.abs(actual - expected) <= TOLERANCES[dtype] * largest_sums(layer, x)).all()


def with_result_shape(model, rank):
    for _ in range(rank):
        model.graph.output[0].type.tensor_type.shape.dim.add()
    return model


def run(module, processor, inputs):
    target = tvm_target(processor)
    lowered = lower(module, target, vector_lanes(processor), can_permute(processor))
    machine = relax.VirtualMachine(tvm.compile(lowered, target=target), tvm.cpu())
    return machine["main"](*map(tvm.runtime.tensor, inputs)).numpy()
