"""Time a compiled library beside its original model, in turns within one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tvm

from tbn_compile.benchmarking import (
    ORIGINAL,
    BenchmarkReport,
    check_limits,
    summarize,
    time_in_turns,
)
from tbn_compile.loading import model_files, total_bytes
from tbn_compile.pipeline import ProgressCallback
from tbn_compile.sessions import Session, check_model, known_dims, random_inputs
from tbn_compile.targets.compiled.loader import CompiledModel, load

_BIG_CORES = 1  # TVM's number for this way of choosing cores


def benchmark_library(
    model: str | Path,
    artifact: str | Path,
    *,
    threads: int = 1,
    runs: int = 200,
    seconds: float = 10.0,
    seed: int = 0,
    input_dims: Mapping[str, int] | None = None,
    progress: ProgressCallback | None = None,
) -> BenchmarkReport:
    """Time the original in stock ONNX Runtime on the CPU and the library; see `benchmark_model`.

    On a GPU, inputs and outputs stay there and each run is waited for.

    Args:
        model: the original `.onnx` file.
        artifact: what target llvm or cuda made of it.
        threads: threads of one operator.
        runs: the most rounds.
        seconds: no round starts after this time, except the first.
        seed: of the random inputs.
        input_dims: extents for symbolic dimensions; others are 1, or as the artifact pins them.
        progress: called as the rounds go on, or None.

    Raises:
        ModelError: if a file is unsafe or invalid, does not suit this machine, or fails.
        UsageError: if an option does not fit the model.
    """
    check_limits(threads, runs, seconds)
    original, compiled = check_model(model), load(artifact)
    shapes = {spec.name: spec.shape for spec in compiled.manifest.inputs}
    feeds = random_inputs(original, seed, known_dims(original, shapes, input_dims or {}))
    tvm.get_global_func("runtime.config_threadpool")(_BIG_CORES, threads)
    contenders: dict[str, Callable[[], object]] = {
        ORIGINAL: partial(Session(original, threads=threads).run_raw, feeds),
        compiled.manifest.target: partial(_run, compiled, compiled.place(feeds)),
    }
    times = time_in_turns(contenders, runs, seconds, progress)
    return BenchmarkReport(
        model=original.path.name,
        artifact=Path(artifact).name,
        original_bytes=total_bytes(model_files(original.path, original.graph)),
        artifact_bytes=Path(artifact).stat().st_size,
        threads=threads,
        rounds=len(times[ORIGINAL]),
        timings=summarize(times),
    )


def _run(compiled: CompiledModel, inputs: Mapping[str, Any]) -> None:
    compiled.run(inputs)
    compiled.device.sync()
