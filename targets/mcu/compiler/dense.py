"""The same network with dense float weights: what a tiled program is measured against."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from tbn_compile.errors import ModelError, clean
from tbn_compile.loading import load_model
from tbn_compile.pipeline import normalise
from tbn_compile.targets.mcu.compiler.compilation import compile_program
from tbn_compile.targets.mcu.compiler.sample import make_sample
from tbn_compile.targets.mcu.cores import Core
from tbn_compile.targets.mcu.program import Optimization, Program


def compile_dense_program(
    source: Path, core: Core, optimization: Optimization, input_dims: Mapping[str, int]
) -> Program:
    """Compile a model as if no tile had been found in it.

    ONNX Runtime first folds constants and BatchNorm, as any compiler of dense networks would.

    Args:
        source: the model's file.
        core: what it will run on.
        optimization: what kernels spend.
        input_dims: extents of symbolic dimensions.

    Raises:
        ModelError: if the model cannot be compiled.
    """
    load_model(source)
    graph = normalise(_folded(source), input_dims)
    return compile_program(
        graph, core, optimization, make_sample(source, graph, input_dims), source.stem
    )


def _folded(source: Path) -> ir.Model:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base
            first = clean((str(error).splitlines() or [""])[0], 160)
            raise ModelError(f"ONNX Runtime cannot load the model: {first}") from error
        graph = load_model(path)
        return ir.from_proto(ir.to_proto(graph))  # nothing may refer to the folder
