"""Tiled convolutions on their way to the CUDA kernel: order of inputs, geometry, what is served."""

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import tvm
from helpers.cuda_library import export
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tbn_compile.passes.relax import Step, tiled_binary_conv
from tbn_compile.passes.relax.tiled_layer import Window
from tbn_compile.targets.cuda.tiled_conv import ConvProblem, order_inputs
from tbn_compile.targets.cuda.tiled_layers import LowerTiledLayers
from tbn_compile.tile import TiledBinaryWeight, pack_bits

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
TOLERANCES = {"float32": 1e-6, "float16": 6e-4, "bfloat16": 5e-3}
CASES = {
    "padded": ((3, 16, 9, 11), (96, 16, 3, 3), 4, {"pads": [1, 1, 1, 1]}),
    "first layer": ((2, 3, 33, 30), (64, 3, 7, 7), 2, {"strides": [2, 2], "pads": [3, 3, 3, 3]}),
    "dilated": ((2, 24, 10, 10), (40, 24, 3, 3), 1, {"dilations": [2, 3], "pads": [2, 0, 1, 3]}),
    "one axis": ((4, 40, 50), (48, 40, 5), 3, {"strides": [3]}),
    "same": ((1, 8, 7, 6), (24, 8, 2, 4), 3, {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    "one position": ((1, 5, 3, 3), (10, 5, 3, 3), 1, {}),
    "one by one": ((2, 64, 8, 8), (256, 64, 1, 1), 4, {}),
}


def make_conv(extents, shape, copies, window, dtype="float32", batch=None, **options):
    """Relax of one layer, with its weight and bias."""
    random = np.random.default_rng(sum(shape))
    length = int(np.prod(shape)) // copies
    weight = TiledBinaryWeight(
        bits=pack_bits(random.random(length) < 0.5),
        shape=shape,
        tile_length=length,
        scale=random.uniform(0.5, 2, copies).astype(DTYPES[dtype]),
        scale_length=length,
    )
    bias = random.standard_normal(shape[0]).astype(DTYPES[dtype])
    count = tvm.tirx.Var("n", "int64") if batch == "dynamic" else extents[0]
    x = relax.Var("x", relax.TensorType([count, *extents[1:]], dtype))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        call = tiled_binary_conv(
            x,
            relax.const(weight.bits),
            relax.const(weight.scale, dtype),
            [Step("bias", relax.const(bias, dtype)), Step("clip", bounds=(-2.0, 2.0))],
            weight_shape=shape,
            tile_length=length,
            scale_length=length,
            **window,
            **options,
        )
        builder.emit_func_output(builder.emit(call))
    return builder.get(), weight, bias


def names_of(module):
    return [name.name_hint for name in module.get_global_vars() if name.name_hint != "main"]


def convolve(x, matrix, problem):
    """What the kernel computes, input by input in its order: float64[n, outputs, positions]."""
    padded = np.zeros(
        (*x.shape[:2], *(e + p + 2**6 for e, p in zip(x.shape[2:], problem.pads, strict=True)))
    )
    inner = tuple(slice(p, p + e) for p, e in zip(problem.pads, x.shape[2:], strict=True))
    padded[(slice(None), slice(None), *inner)] = x
    patches = []
    for place in np.ndindex(*problem.kernel):
        window = tuple(
            slice(at * d, at * d + r * s, s)
            for at, d, r, s in zip(
                place, problem.dilations, problem.results, problem.strides, strict=True
            )
        )
        patches.append(padded[(slice(None), slice(None), *window)].reshape(*x.shape[:2], -1))
    return np.einsum("rk,nkp->nrp", matrix, np.concatenate(patches, axis=1))


def onnx_convolve(x, matrix, shape, window):
    """ONNX Runtime's answer, float32[n, outputs, positions]."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], **window)
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(matrix.reshape(shape).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x.astype(np.float32)})[0].reshape(len(x), len(matrix), -1)


def problem_of(extents, shape, window, batch=None):
    axes = len(shape) - 2
    placed = Window(
        tuple(window.get("strides", [1] * axes)),
        tuple(window.get("dilations", [1] * axes)),
        tuple(window.get("pads", [0] * 2 * axes)),
        window.get("auto_pad", "NOTSET"),
    )
    integers = [tvm.tirx.IntImm("int64", extent) for extent in extents[2:]]
    places = placed.place(integers, shape[2:])
    return ConvProblem(
        dtype="float32",
        batch=batch,
        channels=shape[1],
        extents=tuple(extents[2:]),
        results=tuple(int(result) for _, result in places),
        kernel=tuple(shape[2:]),
        strides=placed.strides,
        dilations=placed.dilations,
        pads=tuple(int(before) for before, _ in places),
        rows=shape[0],
        copies=1,
    )


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_order_is_the_convolution(name):
    extents, shape, _, window = CASES[name]
    random = np.random.default_rng(3)
    x = random.integers(-8, 9, extents)
    signs = random.random((shape[0], int(np.prod(shape[1:])))) < 0.5
    ordered = order_inputs(signs, shape[1])
    result = convolve(x, np.where(ordered, 1, -1), problem_of(extents, shape, window))
    assert np.array_equal(result, onnx_convolve(x, np.where(signs, 1, -1), shape, window))


@pytest.mark.parametrize("name", CASES)
def test_lowered_without_the_portable_loops(name):
    lowered = LowerTiledLayers(["80"])(make_conv(*CASES[name])[0])
    assert names_of(lowered) == ["tiled_conv"]


@pytest.mark.parametrize(
    ("extents", "shape", "options"),
    [
        ((2, 8, 9, 9), (16, 4, 3, 3), {"groups": 2}),
        ((2, 8, 9, 9), (16, 8, 2, 2), {"pool": [2, 2]}),
        ((1, 4, 5, 5, 5), (16, 4, 3, 3, 3), {}),
        ((1, 8, 4, 4), (16, 8, 1, 1), {"strides": [2**30, 1]}),
    ],
    ids=["groups", "pool", "three axes", "a stride beyond 32 bits"],
)
def test_what_has_no_kernel_goes_the_portable_way(extents, shape, options):
    lowered = LowerTiledLayers(["80"])(make_conv(extents, shape, 1, {}, **options)[0])
    assert names_of(lowered) == ["tiled_binary_conv"]


def lower_and_export(folder, module, architectures):
    return export(folder, LowerTiledLayers(architectures)(module), architectures)


@pytest.mark.parametrize("batch", [None, "dynamic"])
def test_a_whole_module_builds(tmp_path, batch):
    module, *_ = make_conv(*CASES["padded"], dtype="float16", batch=batch)
    assert b"__global__" not in lower_and_export(tmp_path, module, ["80", "90"]).read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [None, "dynamic"])
@pytest.mark.parametrize("name", CASES)
def test_results(tmp_path, name, dtype, batch):
    extents, shape, _, window = CASES[name]
    module, weight, bias = make_conv(*CASES[name], dtype=dtype, batch=batch)
    path = lower_and_export(tmp_path, module, ["80"])
    device = tvm.cuda(0)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), device)
    x = np.random.default_rng(1).standard_normal(extents).astype(DTYPES[dtype])
    y = machine["main"](tvm.runtime.tensor(x, device)).numpy().astype(np.float64)
    matrix = weight.matrix().astype(np.float64)
    ordered = order_inputs(matrix, shape[1])
    expected = convolve(x.astype(np.float64), ordered, problem_of(extents, shape, window))
    expected = np.clip(expected + bias.astype(np.float64)[:, None], -2, 2)
    error = np.linalg.norm(y.reshape(expected.shape) - expected) / np.linalg.norm(expected)
    assert error < TOLERANCES[dtype]
