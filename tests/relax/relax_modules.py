"""Small tiled calls for Before/After modules, and the way through TVM to numbers."""

import numpy as np
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from tbn_compile.passes.relax import tiled_binary_conv, tiled_binary_gemm
from tbn_compile.tile import pack_bits

OUTPUTS = 6
_SIGNS = np.random.default_rng(3).integers(0, 2, 12).astype(np.bool_)
TILE = pack_bits(_SIGNS)
ONE_SCALE = np.array([0.5], np.float32)
ROW_SCALES = np.array([1, 2, 3, -4, 5, 6], np.float32)


def constant(*values):
    return relax.const(np.array(values, np.float32))


def gemm(x, epilogue=(), scale=ONE_SCALE, **quantization):
    """[..., 4] to [..., 6], a tile of three rows used twice."""
    return tiled_binary_gemm(
        x,
        relax.const(TILE),
        relax.const(scale),
        epilogue,
        weight_shape=(OUTPUTS, 4),
        tile_length=12,
        scale_length=24 // scale.size,
        **quantization,
    )


def conv(x, epilogue=(), scale=ONE_SCALE, **quantization):
    """[batch, 4, height, width] to 6 channels, pointwise."""
    return tiled_binary_conv(
        x,
        relax.const(TILE),
        relax.const(scale),
        epilogue,
        weight_shape=(OUTPUTS, 4, 1, 1),
        tile_length=12,
        scale_length=24 // scale.size,
        **quantization,
    )


def run(module, *inputs):
    """The outputs of `main`, compiled for the host."""
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(each) for each in inputs))
    if isinstance(result, tvm.runtime.Tensor):
        return result.numpy()
    return [each.numpy() for each in result]


def run_onnx(model, *inputs):
    return run(from_onnx(model), *inputs)


def kernels(module):
    """The module's TIR functions by name."""
    found = module.functions_items()
    return {v.name_hint: f for v, f in found if isinstance(f, tvm.tirx.PrimFunc)}
