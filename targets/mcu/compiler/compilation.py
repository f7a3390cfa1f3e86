"""The way of a lowered graph to C: import, lower, write functions, plan memory, write files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
from tvm import tirx

from tbn_compile.errors import ModelError, TbnError, clean
from tbn_compile.passes.onnx.tiled_nodes import tiled_nodes
from tbn_compile.targets.mcu.compiler.c_program import HEADER, entry_source, header, program_source
from tbn_compile.targets.mcu.compiler.c_source import CFunction, write_functions
from tbn_compile.targets.mcu.compiler.executor import Executable, Steps, place_steps, read_steps
from tbn_compile.targets.mcu.compiler.graph_check import check_graph, check_static
from tbn_compile.targets.mcu.compiler.identifiers import identifiers
from tbn_compile.targets.mcu.compiler.lowering import KERNEL, WEIGHTS, lower
from tbn_compile.targets.mcu.compiler.verification import verify_import
from tbn_compile.targets.mcu.cores import Core
from tbn_compile.targets.mcu.program import Operator, Optimization, Program, Sample, Tensor
from tbn_compile.targets.relax_import import to_relax


def compile_program(
    graph: ir.Model,
    core: Core,
    optimization: Optimization,
    sample: Sample,
    name: str,
    on_left: Callable[[str], None] | None = None,
) -> Program:
    """Compile to C.

    Args:
        graph: a lowered graph, or one without tiled layers.
        core: what it will run on.
        optimization: what kernels spend.
        sample: for the self-test.
        name: of the model, for metadata.
        on_left: called with the reason, for each tiled layer that computes in float although
            integers come in.

    Raises:
        ModelError: if the graph holds what cannot be compiled.
    """
    check_graph(graph)
    module = to_relax(graph)
    check_static(module)
    with _naming_tvm("compile"):
        is_quantized = any(node.op_type == "QuantizeLinear" for node in graph.graph)
        verify_import(module, sample, is_quantized=is_quantized)
        module = lower(module, core, optimization, on_left)
    steps = read_steps(module)
    functions = _functions(module, steps.result_counts)
    executable = place_steps(steps, functions)
    inputs, outputs = _tensors(graph, sample)
    used = [functions[key] for key in dict.fromkeys(s.function for s in steps.steps) if key]
    sources = {
        HEADER: header(inputs, outputs, executable.workspace_bytes),
        "default_lib0.c": entry_source(inputs, outputs),
        "default_lib1.c": program_source(
            used, steps.constants, executable, len(inputs), len(outputs)
        ),
    }
    return Program(
        model_name=name,
        core=core.name,
        inputs=inputs,
        outputs=outputs,
        operators=tuple(_operators(graph, module, steps, executable)),
        workspace_bytes=executable.workspace_bytes,
        constant_bytes=sum(array.nbytes for array in steps.constants),
        weight_bytes=_weight_bytes(module, steps),
        sources=sources,
        sample=sample,
    )


@contextmanager
def _naming_tvm(action: str) -> Generator[None]:
    try:
        yield
    except TbnError:
        raise
    except Exception as error:  # TVM's errors have no common base
        lines = " ".join(str(error).splitlines()[:2])
        raise ModelError(f"TVM cannot {action} the graph: {clean(lines, 200)}") from error


def _functions(module: Any, result_counts: dict[str, int]) -> dict[str, CFunction]:
    """C functions by their name in the module; those that are called, in the order of calls."""
    by_name = {
        name.name_hint: function
        for name, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }
    names = dict(zip(result_counts, identifiers(result_counts), strict=True))
    written = write_functions(
        {short: by_name[name] for name, short in names.items()},
        {short: result_counts[name] for name, short in names.items()},
    )
    return dict(zip(result_counts, written, strict=True))


def _tensors(graph: ir.Model, sample: Sample) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs and outputs, as the sample shows them."""
    inputs = [value for value in graph.graph.inputs if value.const_value is None]
    names = [value.name or "" for value in (*inputs, *graph.graph.outputs)]
    arrays = (*sample.inputs, *sample.outputs)
    steps = [0.0] * len(inputs) + [_step(value) for value in graph.graph.outputs]
    tensors = [
        Tensor(name, identifier, array.shape, array.dtype.name, step)
        for name, identifier, array, step in zip(
            names, identifiers(names), arrays, steps, strict=True
        )
    ]
    return tuple(tensors[: len(inputs)]), tuple(tensors[len(inputs) :])


def _step(output: ir.Value) -> float:
    node = output.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[1] is None:
        return 0.0
    scale = node.inputs[1].const_value
    return 0.0 if scale is None else float(abs(scale.numpy()).max())


def _operators(
    graph: ir.Model, module: Any, steps: Steps, executable: Executable
) -> Iterator[Operator]:
    """Each step; a tiled layer bears the name of its node."""
    names = iter([node.name or node.op_type for node in tiled_nodes(graph)])
    kernels = _attributes(module, KERNEL)
    for step, placed in zip(steps.steps, executable.steps, strict=True):
        kernel = kernels.get(step.function or "")
        yield Operator(
            function_name=placed.function.name if placed.function else "memcpy",
            layer=next(names, "") if kernel else (step.function or "copy"),
            workspace_bytes=placed.workspace_bytes,
            live_bytes=placed.live_bytes,
            kernel=str(kernel or ""),
        )


def _weight_bytes(module: Any, steps: Steps) -> int:
    """Bytes of the constants that stand for tiles and scales; shared ones count once."""
    counts = _attributes(module, WEIGHTS)
    weights = {
        argument.place
        for step in steps.steps
        for argument in step.arguments[1 : 1 + int(counts.get(step.function or "", 0))]
        if argument.place is not None and argument.place.kind == "constant"
    }
    return sum(steps.constants[place.index].nbytes for place in weights)


def _attributes(module: Any, key: str) -> dict[str, Any]:
    """The values of an attribute by the names of the functions that have it."""
    return {
        name.name_hint: function.attrs[key]
        for name, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc) and key in function.attrs
    }
