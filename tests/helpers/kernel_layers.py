"""Layers of `tests/runtime` as calls of tiled operators, and their kernels run on the host."""

import sys
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from tbn_compile.passes.relax import Step, read_layer, tiled_binary_conv, tiled_binary_gemm
from tbn_compile.passes.relax.tiled_layer import constant_of
from tbn_compile.targets.mcu.kernels.arithmetic import float_arithmetic
from tbn_compile.targets.mcu.kernels.candidates import candidates, portable
from tbn_compile.targets.mcu.kernels.cost_model import Costs
from tbn_compile.targets.mcu.kernels.distinct_rows import distinct_rows
from tbn_compile.targets.mcu.kernels.tiled_function import TiledFunction

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

WINDOW = {"strides": "strides", "dilations": "dilations", "pads": "pads", "group": "groups"}


def tiled_layer(layer, x_shape, residual=False):
    """The call that a `Layer` of `tests/runtime` stands for, taken apart."""
    attributes = layer.attributes
    epilogue = []
    if layer.bias is not None:
        epilogue.append(Step("bias", operand=relax.const(layer.bias.astype(np.float32))))
    bounds = (attributes.get("activation_min", -np.inf), attributes.get("activation_max", np.inf))
    if bounds != (-np.inf, np.inf):
        epilogue.append(Step("clip", bounds=bounds))
    fields = {
        "weight_shape": layer.weight_shape,
        "tile_length": len(layer.bits),
        "scale_length": layer.scale_length,
        "offset": layer.offset,
        "scale_offset": layer.scale_offset,
    }
    if layer.is_conv:
        fields |= {new: attributes[old] for old, new in WINDOW.items() if old in attributes}
        fields["auto_pad"] = attributes.get("auto_pad", "NOTSET")
    else:
        fields["layout"] = "NK" if attributes.get("transB", 1) else "KN"
    make = tiled_binary_conv if layer.is_conv else tiled_binary_gemm
    x = relax.Var("x", relax.TensorType(x_shape, "float32"))
    tensors = relax.const(layer.tile), relax.const(layer.scale.astype(np.float32))
    if residual:
        shape = read_layer(make(x, *tensors, **fields)).result_type()
        epilogue.insert(0, Step("residual", operand=relax.Var("residual", shape)))
    return read_layer(make(x, *tensors, epilogue, **fields))


def every_candidate(layer, has_fpu=True):
    """All kernels that can compute a layer."""
    arrays = tuple(constant_of(each) for each in (layer.tile, layer.scale))
    weight = distinct_rows(layer, arrays[0])
    if weight is None:
        return [portable(layer, arrays)]
    function = TiledFunction(layer, weight, float_arithmetic(layer, weight))
    return list(candidates(function, Costs(1, 1) if has_fpu else Costs(70, 40)))


def run(function, *arrays):
    """What a kernel leaves in its last parameter, which starts as garbage."""
    compiled = tvm.compile(function.with_attr("global_symbol", "kernel"), "llvm")
    shape = [int(extent) for extent in function.params[-1].ty.shape]
    dtype = str(function.params[-1].ty.dtype)
    result = tvm.runtime.tensor(np.full(shape, 77, dtype))
    compiled["kernel"](*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays), result)
    return result.numpy()
