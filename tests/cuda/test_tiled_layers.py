"""Tiled Gemm layers on their way to CUDA kernels: packing, constants, and the choice of kernel."""

import re

import ml_dtypes
import numpy as np
import pytest
import tvm
from helpers.cuda_library import export
from tvm import relax

from tbn_compile.passes.relax import Step, tiled_binary_gemm
from tbn_compile.targets.cuda.compilation import compile_fatbin
from tbn_compile.targets.cuda.sources import GemmShape, gemm_source
from tbn_compile.targets.cuda.tiled_gemm import (
    GemmProblem,
    gemm_function,
    gemm_shape,
    pack_words,
)
from tbn_compile.targets.cuda.tiled_layers import LowerTiledLayers
from tbn_compile.tile import TiledBinaryWeight, pack_bits

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
SHARED = [(1024, 4096), (2048, 4096), (1024, 1024)]
SCALES = {"layer": (1, 1), "tile": (3, 8 * 40), "row": (24, 40)}


def unpack_words(words, inputs):
    """bool[rows, K], bit by bit as `pack_words` describes them."""
    blocks, rows, _ = words.shape
    signs = np.zeros((rows, blocks * 128), dtype=bool)
    for lane in range(4):
        for pair in range(16):
            first = 16 * (pair // 2) + 8 * (pair % 2) + 2 * lane
            for one in range(2):
                bit = words[:, :, lane] >> (pair + 16 * one) & 1
                signs[:, first + one :: 128] = bit.T == 0
    return signs[:, :inputs]


def make_layer(dtype="float16", scaling="row", layout="NK", batch=5, tile_length=8 * 40):
    """Relax of one layer, [batch, 2, 40] to [batch, 2, 24], with its weight and bias."""
    random = np.random.default_rng(tile_length)
    count, length = SCALES[scaling]
    if layout == "KN" and scaling == "row":
        length = 1
    weight = TiledBinaryWeight(
        bits=pack_bits(random.random(tile_length) < 0.5),
        shape=(24, 40) if layout == "NK" else (40, 24),
        tile_length=tile_length,
        scale=random.uniform(0.5, 2, count).astype(DTYPES[dtype]),
        scale_length=length,
        layout=layout,
    )
    bias = random.standard_normal(24).astype(DTYPES[dtype])
    extent = tvm.tirx.Var("n", "int64") if batch is None else batch
    x = relax.Var("x", relax.TensorType([extent, 2, 40], dtype))
    steps = [Step("bias", relax.const(bias, dtype)), Step("clip", bounds=(0.0, float("inf")))]
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        call = tiled_binary_gemm(
            x,
            relax.const(weight.bits),
            relax.const(weight.scale, dtype),
            steps,
            weight_shape=weight.shape,
            tile_length=weight.tile_length,
            scale_length=weight.scale_length,
            layout=layout,
        )
        builder.emit_func_output(builder.emit(call))
    return builder.get(), weight, bias


def kernel_names(module):
    return [name.name_hint for name in module.get_global_vars() if name.name_hint != "main"]


def constants_of(module):
    found = []
    relax.analysis.post_order_visit(
        module["main"],
        lambda node: (
            found.append(node.value.numpy()) if isinstance(node, tvm.ir.GenericConst) else None
        ),
    )
    return found


@pytest.mark.parametrize(("rows", "inputs"), [(8, 8), (3, 128), (40, 328)])
def test_words_hold_every_sign(rows, inputs):
    signs = np.random.default_rng(rows).random((rows, inputs)) < 0.5
    words = pack_words(signs)
    assert words.shape == (-(-inputs // 128), rows, 4)
    assert words.dtype == np.uint32
    assert np.array_equal(unpack_words(words, inputs), signs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaling", SCALES)
@pytest.mark.parametrize("batch", [5, 5000, None])
def test_constants_say_the_weight(dtype, scaling, batch):
    assert_constants_say(*make_layer(dtype, scaling, batch=batch))


def test_constants_say_a_weight_stored_transposed():
    assert_constants_say(*make_layer(layout="KN", tile_length=24 * 40))


def assert_constants_say(module, weight, bias):
    lowered = LowerTiledLayers(["90"])(module)
    assert kernel_names(lowered) == ["tiled_gemm"]
    words, scale, shift = constants_of(lowered)
    dense = (
        np.where(np.tile(unpack_words(words, 40), (24 // words.shape[1], 1)), 1, -1)
        * scale[:, None]
    )
    assert np.array_equal(dense, weight.matrix().astype(np.float32))
    assert np.array_equal(shift, bias.astype(np.float32))


def test_constants_say_a_weight_that_repeats_along_the_inputs():
    assert_constants_say(*make_layer(scaling="layer", layout="KN", tile_length=24 * 8))


@pytest.mark.parametrize("architectures", [["80"], ["80", "90"]])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("batch", [5, None])
def test_a_whole_module_builds(tmp_path, architectures, dtype, batch):
    module, *_ = make_layer(dtype, batch=batch)
    assert b"__global__" not in lower_and_export(tmp_path, module, architectures).read_bytes()


def test_layers_of_different_sizes_share_a_kernel():
    problems = [GemmProblem("float32", 8192, rows, 4, inputs) for rows, inputs in SHARED]
    scripts = [gemm_function(problem, ["80"]).script() for problem in problems]
    assert len({re.findall(r"tiled_mma_\w+", script)[0] for script in scripts}) == 1


@pytest.mark.parametrize("rows", [8, 64, 96, 192, 384, 512, 1000, 4096])
@pytest.mark.parametrize("batch", [None, 17, 1000, 12608])
def test_shapes_fit_the_hardware(batch, rows):
    shape = gemm_shape(batch, rows)
    assert shape.shared_bytes * shape.blocks <= 227 * 1024
    assert shape.columns % shape.store_rows == 0
    assert shape.store_rows % 16 == 0
    assert shape.blocks == 1 or shape.groups == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sources_agree_with_python_on_shared_memory(dtype):
    gemm = GemmShape(2, 1, 96, 10, 96)
    element = {"float16": "__half", "bfloat16": "__nv_bfloat16"}[dtype]
    checks = f"""
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
static_assert(tbn::Gemm<{element}, a_activation, 2, 1, 96, 10, 96>::kSharedBytes
              == {gemm.shared_bytes});
static_assert(tbn::Gemm<{element}, a_activation, 2, 1, 96, 10, 96>::kThreads == {gemm.threads});
#endif
"""
    compile_fatbin(gemm_source("a", gemm, dtype, []) + checks, ["90"])


def lower_and_export(folder, module, architectures):
    return export(folder, LowerTiledLayers(architectures)(module), architectures)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaling", SCALES)
@pytest.mark.parametrize("architectures", [["90"], ["80"]])
@pytest.mark.parametrize("batch", [1, 9, 40])
def test_results(tmp_path, dtype, scaling, batch, architectures):
    module, weight, bias = make_layer(dtype, scaling, batch=batch)
    path = lower_and_export(tmp_path, module, architectures)
    device = tvm.cuda(0)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), device)
    x = np.random.default_rng(1).standard_normal((batch, 2, 40)).astype(DTYPES[dtype])
    y = machine["main"](tvm.runtime.tensor(x, device)).numpy().astype(np.float64)
    reference = x.astype(np.float64) @ weight.matrix().astype(np.float64).T
    reference = np.maximum(reference + bias.astype(np.float64), 0)
    error = np.linalg.norm(y - reference) / np.linalg.norm(reference)
    assert error < {"float32": 1e-6, "float16": 6e-4, "bfloat16": 5e-3}[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [4, 40])
def test_float32_keeps_what_is_not_finite(tmp_path, batch):
    module, weight, bias = make_layer("float32", batch=batch)
    path = lower_and_export(tmp_path, module, ["80", "90"])
    device = tvm.cuda(0)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), device)
    x = np.random.default_rng(1).standard_normal((batch, 2, 40)).astype(np.float32)
    x[0, 0, 3], x[1, 1, 4], x[2, 0, 1] = np.inf, np.nan, np.finfo(np.float32).max
    y = machine["main"](tvm.runtime.tensor(x, device)).numpy()
    with np.errstate(over="ignore"):
        reference = (x.astype(np.float64) @ weight.matrix().astype(np.float64).T).astype(np.float32)
    reference = np.maximum(reference + bias, 0)
    assert np.array_equal(np.isfinite(y), np.isfinite(reference))
    assert np.allclose(y, reference, rtol=1e-5, atol=1e-5, equal_nan=True)
