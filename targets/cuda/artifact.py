"""The way of a lowered graph to an artifact for a GPU: import, lower, build, describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import tvm
from tvm import relax, tirx

from tbn_compile.errors import ModelError, clean
from tbn_compile.passes.relax import is_tiled, read_layer
from tbn_compile.passes.relax.lower_tiled_calls import count_portable_calls
from tbn_compile.targets import Tuning
from tbn_compile.targets.compiled.artifact import Compilation, pack_artifact
from tbn_compile.targets.compiled.graph_import import import_graph, tensor_specs
from tbn_compile.targets.compiled.library import build_library, naming_tvm
from tbn_compile.targets.compiled.llvm_processors import find_processor, tvm_target
from tbn_compile.targets.compiled.manifest import Manifest, encodable, tool_versions
from tbn_compile.targets.compiled.processor import architecture
from tbn_compile.targets.cuda.compilation import compiler_name, machine_code
from tbn_compile.targets.cuda.lowering import lower
from tbn_compile.targets.cuda.schedule import gpu_target

_BASELINES = {"x86_64": "x86-64", "aarch64": "generic"}
"""Processors whose code runs on every machine of an architecture: the host only launches."""
_GRAPHS = {"relax.backend.use_cuda_graph": True}
"""Launches whose shapes are known are captured once and replayed as one graph."""


def compile_artifact(
    graph: ir.Model, model: str, architectures: Sequence[str], tuning: Tuning | None = None
) -> Compilation:
    """Compile to an artifact.

    Args:
        graph: a lowered graph, or one without tiled layers.
        model: the name of the file that it came from.
        architectures: compute capabilities, checked.
        tuning: schedules to search or to use, or None.

    Raises:
        ModelError: if the graph holds what cannot be compiled.
        UsageError: if there is no C++ or CUDA compiler.
    """
    module = import_graph(graph)
    _refuse_symbolic_windows(module)
    inputs, outputs = tensor_specs(graph, module)
    processor = find_processor(_BASELINES.get(architecture(), "generic"))
    target = gpu_target(tvm_target(processor))
    with naming_tvm("lower"):
        module = lower(module, target, architectures, tuning)
    with machine_code(architectures) as label, tvm.transform.PassContext(config=_GRAPHS):
        library = label(build_library(module, target))
    content = pack_artifact(
        library,
        Manifest(
            model=encodable(model),
            target="cuda",
            device="cuda",
            processor=processor,
            cuda_architectures=tuple(architectures),
            inputs=inputs,
            outputs=outputs,
            tools=tool_versions(cuda=compiler_name()),
        ),
    )
    return Compilation(content, count_portable_calls(module))


def _refuse_symbolic_windows(module: Any) -> None:
    """Neither a kernel of ours nor one of TVM's takes them."""
    symbolic: list[Any] = []

    def visit(call: Any) -> None:
        if isinstance(call, relax.Call) and is_tiled(call) and read_layer(call).window is not None:
            extents = call.args[0].ty.shape.values[2:]
            symbolic.extend(each for each in extents if not isinstance(each, tirx.IntImm))

    relax.analysis.post_order_visit(module["main"], visit)
    if symbolic:
        raise ModelError(
            f"the input of a tiled convolution has an extent, {clean(symbolic[0], 40)}, that is "
            f"known only when the model runs; give it with --input-dim NAME=EXTENT"
        )
