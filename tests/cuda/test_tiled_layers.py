"""Tiled Gemm layers on their way to CUDA kernels: packing, constants, and the choice of kernel."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import relax

from tbn_compile.passes.relax import Step, tiled_binary_gemm
from tbn_compile.targets.cuda.compilation import compile_fatbin, machine_code
from tbn_compile.targets.cuda.sources import GemmShape, GemvShape, gemm_source, gemv_source
from tbn_compile.targets.cuda.tiled_gemm import gemm_shape, pack_words
from tbn_compile.targets.cuda.tiled_layers import LowerTiledLayers
from tbn_compile.tile import TiledBinaryWeight, pack_bits

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scaling", SCALES)
@pytest.mark.parametrize("batch", [5, 5000, None])
def test_constants_say_the_weight(dtype, scaling, batch):
    assert_constants_say(*make_layer(dtype, scaling, batch=batch))


def test_constants_say_a_weight_stored_transposed():
    assert_constants_say(*make_layer(layout="KN", tile_length=24 * 40))


def assert_constants_say(module, weight, bias):
    lowered = LowerTiledLayers("hopper")(module)
    assert kernel_names(lowered) == ["tiled_gemm"]
    words, scale, shift = constants_of(lowered)
    dense = (
        np.where(np.tile(unpack_words(words, 40), (24 // words.shape[1], 1)), 1, -1)
        * scale[:, None]
    )
    assert np.array_equal(dense, weight.matrix().astype(np.float32))
    assert np.array_equal(shift, bias.astype(np.float32))


def test_a_layer_in_float32_goes_the_portable_way():
    module, *_ = make_layer("float32")
    assert kernel_names(LowerTiledLayers("hopper")(module)) == ["tiled_binary_gemm"]


def test_a_layer_whose_inputs_are_folded_goes_the_portable_way():
    module, *_ = make_layer(scaling="layer", tile_length=20)
    assert kernel_names(LowerTiledLayers("hopper")(module)) == ["tiled_binary_gemm"]


@pytest.mark.parametrize("kind", ["hopper", "any"])
@pytest.mark.parametrize("batch", [5, None])
def test_a_whole_module_builds(tmp_path, kind, batch):
    module, *_ = make_layer(batch=batch)
    lowered = LowerTiledLayers(kind)(module)
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90a"}, host="llvm")
    path = tmp_path / "model.so"
    with machine_code(["90a" if kind == "hopper" else "80"]) as label:
        tvm.compile(lowered, target=target).export_library(str(path))
        assert b"__global__" not in label(path.read_bytes())


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
    gemm, gemv = GemmShape(2, 1, 96, 10, 96), GemvShape(4, 2, 8, 16)
    element = {"float16": "__half", "bfloat16": "__nv_bfloat16"}[dtype]
    checks = f"""
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
static_assert(tbn::Gemm<{element}, a_activation, 2, 1, 96, 10, 96>::kSharedBytes
              == {gemm.shared_bytes});
static_assert(tbn::Gemm<{element}, a_activation, 2, 1, 96, 10, 96>::kThreads == {gemm.threads});
#endif
static_assert(tbn::Gemv<{element}, b_activation, 4, 2, 8, 16>::kSharedBytes
              == {gemv.shared_bytes});
static_assert(tbn::Gemv<{element}, b_activation, 4, 2, 8, 16>::kThreads == {gemv.threads});
"""
    source = gemm_source("a", gemm, dtype, []) + gemv_source("b", gemv, dtype, []) + checks
    compile_fatbin(source, ["90a"])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scaling", SCALES)
@pytest.mark.parametrize(
    ("batch", "kind"), [(1, "hopper"), (9, "hopper"), (40, "hopper"), (9, "any")]
)
def test_results(tmp_path, dtype, scaling, batch, kind):
    module, weight, bias = make_layer(dtype, scaling, batch=batch)
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90a"}, host="llvm")
    path = tmp_path / "model.so"
    with machine_code(["90a"]) as label:
        tvm.compile(LowerTiledLayers(kind)(module), target=target).export_library(str(path))
        path.write_bytes(label(path.read_bytes()))
    device = tvm.cuda(0)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), device)
    x = np.random.default_rng(1).standard_normal((batch, 2, 40)).astype(DTYPES[dtype])
    y = machine["main"](tvm.runtime.tensor(x, device)).numpy().astype(np.float64)
    reference = x.astype(np.float64) @ weight.matrix().astype(np.float64).T
    reference = np.maximum(reference + bias.astype(np.float64), 0)
    error = np.linalg.norm(y - reference) / np.linalg.norm(reference)
    assert error < {"float16": 6e-4, "bfloat16": 5e-3}[dtype]
