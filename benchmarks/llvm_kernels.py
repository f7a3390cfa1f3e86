"""Times target llvm beside ONNX Runtime's dense kernels and TVM's, one thread.

Rows are those of `ort_kernels.py` in float32. Each pair of runs takes a peer and then ours. TVM's
dense Gemm is a schedule of ours on weights packed beforehand: blocks of 8 rows by 2 vectors summed
in registers; where 8 does not divide the rows, and for convolutions, it is what TVM 0.27 generates
by default. Every result is checked against numpy in float64 before it is timed. Exit status 1: some
row misses 0.75 · p.

    python benchmarks/llvm_kernels.py
    python benchmarks/llvm_kernels.py --only 64x1024 --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["TVM_NUM_THREADS"] = "1"

import numpy as np
import onnx
import onnxruntime
import tvm
from ort_kernels import CASES, Case, Layer, expected, make_layer, make_model
from rich.console import Console
from rich.table import Table
from tvm import tirx
from tvm.relax.frontend.onnx import from_onnx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

import tbn_compile
from tbn_compile.targets.llvm.processors import find_processor, tvm_target, vector_lanes

SHARE = 0.75
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Result:
    """Median times in microseconds, and medians of the ratios of pairs."""

    name: str
    p: int
    ort_us: float
    tvm_us: float
    ours_us: float
    over_ort: float
    over_tvm: float
    error: float

    @property
    def passed(self) -> bool:
        """Whether both ratios reach the target."""
        return min(self.over_ort, self.over_tvm) >= SHARE * self.p


def dense_gemm(rows: int, outputs: int, inputs: int, lanes: int) -> Any:
    """TIR of y = x · W + b, W packed as [outputs / width, inputs, width], width two vectors."""
    block, width = min(8, rows), 2 * lanes
    if rows % block or outputs % width:
        raise ValueError("rows and outputs must be multiples of a block")
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        x = T.arg("x", T.buffer((rows, inputs), "float32"))
        weight = T.arg("weight", T.buffer((outputs // width, inputs, width), "float32"))
        bias = T.arg("bias", T.buffer((outputs,), "float32"))
        y = T.arg("y", T.buffer((rows, outputs), "float32"))
        with T.serial(0, outputs // width) as n, T.serial(0, rows // block) as m:
            sums = T.alloc_buffer((block, 2, lanes), "float32", scope="local")
            with T.unroll(0, block) as i, T.unroll(0, 2) as v, T.vectorized(0, lanes) as lane:
                T.buffer_store(sums, tirx.const(0.0, "float32"), [i, v, lane])
            with (
                T.serial(0, inputs) as k,
                T.unroll(0, block) as i,
                T.unroll(0, 2) as v,
                T.vectorized(0, lanes) as lane,
            ):
                product = x[m * block + i, k] * weight[n, k, v * lanes + lane]
                T.buffer_store(sums, sums[i, v, lane] + product, [i, v, lane])
            with T.unroll(0, block) as i, T.unroll(0, 2) as v, T.vectorized(0, lanes) as lane:
                at = n * width + v * lanes + lane
                T.buffer_store(y, sums[i, v, lane] + bias[at], [m * block + i, at])
    return builder.get()


def tvm_dense(case: Case, layer: Layer) -> Callable[[Any], Any]:
    """TVM's dense kernel."""
    processor = find_processor()
    target = tvm_target(processor)
    if len(case.weight_shape) == 2 and case.x_shape[0] % min(8, case.x_shape[0]) == 0:
        lanes = vector_lanes(processor)
        outputs, inputs = case.weight_shape
        packed = layer.weight.reshape(-1, 2 * lanes, inputs).transpose(0, 2, 1)
        function = dense_gemm(case.x_shape[0], outputs, inputs, lanes)
        run = tvm.compile(tvm.IRModule({"main": function}), target=target)["main"]
        constants = [
            tvm.runtime.tensor(np.ascontiguousarray(each)) for each in (packed, layer.bias)
        ]
        y = tvm.runtime.tensor(np.empty((case.x_shape[0], outputs), np.float32))

        def gemm(x: Any) -> Any:
            run(x, *constants, y)
            return y

        return gemm
    module = from_onnx(make_model(case, layer, dense=True), keep_params_in_input=False)
    with target:
        module = tvm.relax.get_pipeline("zero")(module)
        executable = tvm.compile(module, target=target)
    main: Callable[[Any], Any] = tvm.relax.VirtualMachine(executable, tvm.cpu())["main"]
    return main


def measure(case: Case, repeats: int) -> Result:
    """Check all kernels against numpy, then time them in turns."""
    layer = make_layer(case, np.random.default_rng(0))
    want = expected(case, layer)
    model = onnx.shape_inference.infer_shapes(make_model(case, layer, dense=True))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    with tempfile.TemporaryDirectory() as folder:
        source, artifact = Path(folder) / "layer.onnx", Path(folder) / "layer.so"
        onnx.save(model, source)
        tbn_compile.compile_model(source, "llvm", artifact)
        ours = tbn_compile.load(artifact)
    dense, x = tvm_dense(case, layer), tvm.runtime.tensor(layer.x)
    peers: list[Callable[[], Any]] = [
        lambda: session.run(None, {"X": layer.x})[0],
        lambda: dense(x),
    ]
    for run in (*peers, lambda: ours(layer.x)):
        result = run()
        got = result if isinstance(result, np.ndarray) else result.numpy()
        error = float(np.abs(got - want).max() / np.abs(want).max())
        if error > TOLERANCE:
            raise RuntimeError(f"{case.name}: error {error:.1e} against numpy")
    (ort, over_ort, mine), (compiled, over_tvm, _) = (
        in_pairs(peer, lambda: ours(layer.x), repeats) for peer in peers
    )
    name = case.name + (" unaligned" if case.unaligned else "")
    return Result(name, case.p, ort, compiled, mine, over_ort, over_tvm, error)


def in_pairs(
    peer: Callable[[], Any], ours: Callable[[], Any], repeats: int
) -> tuple[float, float, float]:
    """Medians of the peer's time, of the ratio, and of our time."""
    pairs = [(microseconds(peer), microseconds(ours)) for _ in range(repeats)]
    ratio = statistics.median(theirs / mine for theirs, mine in pairs)
    theirs, mine = (statistics.median(times) for times in zip(*pairs, strict=True))
    return theirs, ratio, mine


def microseconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e6


def print_table(results: list[Result]) -> None:
    table = Table(title="One thread, float32, target llvm")
    for title in ("layer", "p", "ORT µs", "TVM µs", "ours µs", "× ORT", "× TVM", "target", "error"):
        justify: Any = "left" if title == "layer" else "right"
        table.add_column(title, justify=justify, no_wrap=True)
    for r in results:
        times = (f"{value:.0f}" for value in (r.ort_us, r.tvm_us, r.ours_us))
        ratios = f"{r.over_ort:.2f}", f"{r.over_tvm:.2f}", f"{SHARE * r.p:g}"
        table.add_row(r.name, str(r.p), *times, *ratios, f"{r.error:.0e}")
    Console(width=120).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=40, help="rounds a row")
    parser.add_argument("--only", default="", help="only rows whose name contains this text")
    arguments = parser.parse_args()
    cases = [c for c in CASES if c.dtype == "float32" and arguments.only in c.name]
    results = [measure(case, arguments.repeats) for case in cases]
    if arguments.json:
        rows = [{**asdict(result), "passed": result.passed} for result in results]
        sys.stdout.write(json.dumps({"schema_version": 1, "results": rows}, indent=2) + "\n")
    else:
        print_table(results)
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
