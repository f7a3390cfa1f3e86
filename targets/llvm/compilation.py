"""The way of a lowered graph to an artifact: import, lower, build, describe."""

from __future__ import annotations

import onnx_ir as ir
from tvm.target import codegen

from tbn_compile.passes.relax.lower_tiled_calls import count_portable_calls
from tbn_compile.targets import Tuning
from tbn_compile.targets.compiled.artifact import Compilation, pack_artifact
from tbn_compile.targets.compiled.graph_import import import_graph, tensor_specs
from tbn_compile.targets.compiled.library import build_library, naming_tvm
from tbn_compile.targets.compiled.llvm_processors import can_permute, tvm_target, vector_lanes
from tbn_compile.targets.compiled.manifest import Manifest, Processor, encodable, tool_versions
from tbn_compile.targets.llvm.lowering import lower


def compile_artifact(
    graph: ir.Model, model: str, processor: Processor, tuning: Tuning | None = None
) -> Compilation:
    """Compile to an artifact.

    Args:
        graph: a lowered graph, or one without tiled layers.
        model: the name of the file that it came from.
        processor: what the code may use.
        tuning: schedules to search or to use, or None.

    Raises:
        ModelError: if the graph holds what cannot be compiled.
        UsageError: if there is no C++ compiler.
    """
    module = import_graph(graph)
    inputs, outputs = tensor_specs(graph, module)
    target = tvm_target(processor)
    with naming_tvm("lower"):
        module = lower(module, target, vector_lanes(processor), can_permute(processor), tuning)
    content = pack_artifact(
        build_library(module, target),
        Manifest(
            model=encodable(model),
            target="llvm",
            device="cpu",
            processor=processor,
            inputs=inputs,
            outputs=outputs,
            tools=tool_versions(llvm=str(codegen.llvm_version_major())),
        ),
    )
    return Compilation(content, count_portable_calls(module))
