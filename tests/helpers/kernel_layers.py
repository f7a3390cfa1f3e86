"""Layers of `tests/runtime` as calls of tiled operators, and all that can compute them."""

import sys
from pathlib import Path

import numpy as np
import tvm  # noqa: TID251
from tvm import relax  # noqa: TID251

from tbn_compile.passes.relax import Step, read_layer, tiled_binary_conv, tiled_binary_gemm
from tbn_compile.passes.relax.distinct_rows import distinct_rows
from tbn_compile.passes.relax.tiled_layer import constant_of
from tbn_compile.targets.mcu.compiler.c_constants import constant_definition
from tbn_compile.targets.mcu.compiler.c_program import ENTRY, entry_source, header
from tbn_compile.targets.mcu.compiler.c_source import declaration, extremes, write_functions
from tbn_compile.targets.mcu.compiler.kernels.arithmetic import float_arithmetic
from tbn_compile.targets.mcu.compiler.kernels.candidates import candidates, portable
from tbn_compile.targets.mcu.compiler.kernels.cost_model import Costs
from tbn_compile.targets.mcu.compiler.kernels.tiled_function import TiledFunction
from tbn_compile.targets.mcu.cores import CORES
from tbn_compile.targets.mcu.program import Operator, Program, Sample, Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

_WINDOW = {"strides": "strides", "dilations": "dilations", "pads": "pads", "group": "groups"}


def tiled_layer(layer, x_shape, residual=False, pool=()):
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
        fields |= {new: attributes[old] for old, new in _WINDOW.items() if old in attributes}
        fields["auto_pad"] = attributes.get("auto_pad", "NOTSET")
    else:
        fields["layout"] = "NK" if attributes.get("transB", 1) else "KN"
    make = tiled_binary_conv if layer.is_conv else tiled_binary_gemm
    x = relax.Var("x", relax.TensorType(x_shape, "float32"))
    tensors = relax.const(layer.tile), relax.const(layer.scale.astype(np.float32))
    if residual:
        kind = read_layer(make(x, *tensors, **fields)).result_type()
        epilogue.insert(0, Step("residual", operand=relax.Var("residual", kind)))
    if pool:
        fields["pool"] = pool
    return read_layer(make(x, *tensors, epilogue, **fields))


def every_candidate(call, core="cortex-m4"):
    """All kernels that can compute a layer, with their costs on a core."""
    arrays = tuple(constant_of(each) for each in (call.tile, call.scale))
    weight = distinct_rows(call, arrays[0])
    if weight is None:
        return [portable(call, arrays)]
    function = TiledFunction(call, weight, float_arithmetic(call, weight))
    return list(candidates(function, Costs.of(CORES[core])))


def run(function, *arrays):
    """What a kernel leaves in its last parameter, which starts as garbage."""
    compiled = tvm.compile(function.with_attr("global_symbol", "kernel"), "llvm")
    result = tvm.runtime.tensor(garbage(function))
    compiled["kernel"](*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays), result)
    return result.numpy()


def garbage(function):
    """An array for the last parameter of a kernel, full of what is no result."""
    result = function.params[-1].ty
    return np.full([int(extent) for extent in result.shape], 77, str(result.dtype))


def kernels_source(functions):
    """C of PrimFuncs by name, and what `write_functions` tells of them."""
    written = write_functions(functions, dict.fromkeys(functions, 1))
    lines = ["#include <stdint.h>", "#include <string.h>", "#include <math.h>"]
    lines += extremes("".join(function.text for function in written))
    for function in written:
        lines += [f"__attribute__((noinline)) {declaration(function)}", function.text]
    return "\n".join(lines) + "\n", written


def counting_program(every, x, bias, core):
    """A program that runs all candidates for a layer, an operator each, and returns the last's."""
    built = [candidate.build() for candidate in every]
    functions = {f"kernel_{index}": function for index, (function, _) in enumerate(built)}
    source, written = kernels_source(functions)
    arrays, calls, workspace = [], [], {}
    for function, (_, constants) in zip(written, built, strict=True):
        names = ["x"]
        for value in (*constants, *([] if bias is None else [bias])):
            names.append(f"array_{len(arrays)}")
            arrays.append(constant_definition(names[-1], value))
        names.append("y")
        for index, parameter in enumerate(function.workspace):
            names.append(f"workspace_{index}")
            workspace[names[-1]] = max(parameter.elements, workspace.get(names[-1], 0))
        calls.append(f"  {function.name}({', '.join(names)});")
    arrays += [f"static float {name}[{elements}];" for name, elements in workspace.items()]
    signature = f"int32_t {ENTRY}(void* x, void* y)"
    body = "\n".join(calls)
    y = garbage(built[-1][0])
    inputs = (Tensor("x", "x", x.shape, "float32"),)
    outputs = (Tensor("y", "y", y.shape, "float32"),)
    return Program(
        model_name="kernels",
        core=core,
        inputs=inputs,
        outputs=outputs,
        operators=tuple(Operator(function.name, "layer", 0, 0) for function in written),
        workspace_bytes=0,
        constant_bytes=0,
        weight_bytes=0,
        sources={
            "tvmgen_default.h": header(inputs, outputs, 0),
            "default_lib0.c": entry_source(inputs, outputs),
            "default_lib1.c": "\n".join(
                [source, *arrays, f"{signature};", f"{signature} {{\n{body}\n  return 0;\n}}\n"]
            ),
        },
        sample=Sample((x,), (y,)),
    )
