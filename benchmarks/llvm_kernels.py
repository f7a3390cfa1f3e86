"""Times target llvm beside ONNX Runtime's dense kernels and TVM's, one thread.

Rows are those of `ort_kernels.py` in float32. Each pair of runs takes a peer and then ours. TVM's
dense kernels are schedules of ours on weights packed beforehand, with sums in registers: a Gemm in
blocks of rows by 2 vectors; a convolution in blocks of 6 outputs by 4 vectors of neighbouring
places. For depthwise convolutions they are what TVM 0.27 generates by default. Every result is
checked against numpy in float64 before it is timed. Exit status 1: some row misses 0.75 · p.

    python benchmarks/llvm_kernels.py
    python benchmarks/llvm_kernels.py --only 64x1024 --json
"""

from __future__ import annotations

import argparse
import json
import math
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
from tbn_compile.targets.compiled.llvm_processors import find_processor, tvm_target, vector_lanes
from tbn_compile.targets.llvm.kernels.grid import Axis, Grid

SHARE = 0.75
TOLERANCE = 1e-5
_OUTPUTS = 6


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
    width = 2 * lanes
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        x = T.arg("x", T.buffer((rows, inputs), "float32"))
        weight = T.arg("weight", T.buffer((outputs // width, inputs, width), "float32"))
        bias = T.arg("bias", T.buffer((outputs,), "float32"))
        y = T.arg("y", T.buffer((rows, outputs), "float32"))

        def emit(first: int, block: int, count: int) -> None:
            with T.serial(0, outputs // width) as n, T.serial(0, count) as m:
                sums = T.alloc_buffer((block, 2, lanes), "float32", scope="local")

                def product(i: Any, v: Any, lane: Any, k: Any) -> Any:
                    return x[first + m * block + i, k] * weight[n, k, v * lanes + lane]

                add_up(sums, inputs, product)
                with T.unroll(0, block) as i, T.unroll(0, 2) as v, T.vectorized(0, lanes) as lane:
                    at = n * width + v * lanes + lane
                    T.buffer_store(y, sums[i, v, lane] + bias[at], [first + m * block + i, at])

        whole, rest = divmod(rows, 8)
        if whole:
            emit(0, 8, whole)
        if rest:
            emit(8 * whole, rest, 1)
    return builder.get()


def add_up(sums: Any, count: int, product: Callable[..., Any]) -> None:
    """Sums [i, v, lane] in registers of `product(i, v, lane, k)` over k."""
    block, vectors, lanes = map(int, sums.ty.shape)
    with T.unroll(0, block) as i, T.unroll(0, vectors) as v, T.vectorized(0, lanes) as lane:
        T.buffer_store(sums, tirx.const(0.0, "float32"), [i, v, lane])
    with (
        T.serial(0, count) as k,
        T.unroll(0, block) as i,
        T.unroll(0, vectors) as v,
        T.vectorized(0, lanes) as lane,
    ):
        T.buffer_store(sums, sums[i, v, lane] + product(i, v, lane, k), [i, v, lane])


def dense_conv(case: Case, lanes: int) -> Any:
    """TIR of a convolution in two dimensions, W packed as [outputs / 6, channels · taps, 6].

    The padded image is parted by the stride, so that neighbouring outputs read neighbours, as
    `grid.py` of the target does; so are its strips cut.
    """
    outputs, channels, *kernel = case.weight_shape
    stride, pad = case.attributes.get("strides", [1, 1])[0], case.attributes["pads"][0]
    size = case.x_shape[2:]
    extents = [(e + 2 * pad - k) // stride + 1 for e, k in zip(size, kernel, strict=True)]
    pointwise = math.prod(kernel) == stride == 1
    if pointwise:
        size, extents = (1, math.prod(size)), [1, math.prod(extents)]
    rows = 1 if pointwise else min(extents[0], 4)
    axes = [Axis(k, stride, 1, e) for k, e in zip(kernel, (rows, extents[1]), strict=True)]
    grid = Grid(tuple(axes), lanes, 4)
    rest, taps = -outputs % _OUTPUTS, math.prod(kernel)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        x = T.arg("x", T.buffer((channels, *size), "float32"))
        packed = (outputs + rest) // _OUTPUTS, channels * taps, _OUTPUTS
        weight = T.arg("weight", T.buffer(packed, "float32"))
        bias = T.arg("bias", T.buffer((outputs + rest,), "float32"))
        y = T.arg("y", T.buffer((outputs, *extents), "float32"))
        planes = T.alloc_buffer((channels, grid.planes, grid.length), "float32")
        sums = T.alloc_buffer((_OUTPUTS, grid.positions), "float32")
        with T.serial(0, -(-extents[0] // rows)) as strip:
            _part(x, planes, grid, strip * rows, stride, pad)
            with T.serial(0, packed[0]) as n:
                with T.serial(0, grid.positions // grid.width) as block:
                    totals = T.alloc_buffer((_OUTPUTS, 4, lanes), "float32", scope="local")

                    def product(i: Any, v: Any, lane: Any, k: Any) -> Any:
                        tap = k % taps
                        plane, shift = grid.place([tap // kernel[1], tap % kernel[1]])
                        at = block * grid.width + v * lanes + shift + lane
                        return weight[n, k, i] * planes[k // taps, plane, at]

                    add_up(totals, channels * taps, product)
                    with (
                        T.unroll(0, _OUTPUTS) as i,
                        T.unroll(0, 4) as v,
                        T.vectorized(0, lanes) as lane,
                    ):
                        at = block * grid.width + v * lanes + lane
                        T.buffer_store(sums, totals[i, v, lane], [i, at])
                with (
                    T.serial(0, tirx.min(_OUTPUTS, outputs - n * _OUTPUTS)) as i,
                    T.serial(0, tirx.min(rows, extents[0] - strip * rows)) as row,
                    T.serial(0, extents[1]) as column,
                ):
                    output = n * _OUTPUTS + i
                    total = sums[i, row * grid.extents[1] + column] + bias[output]
                    T.buffer_store(y, total, [output, strip * rows + row, column])
    return builder.get()


def _part(x: Any, planes: Any, grid: Grid, first: Any, stride: int, pad: int) -> None:
    channels, height, width = map(int, x.ty.shape)
    phases, extents = grid.phases, grid.extents
    with T.serial(0, channels) as c, T.serial(0, grid.planes) as p, T.serial(0, grid.length) as i:
        T.buffer_store(planes, tirx.const(0.0, "float32"), [c, p, i])
    with (
        T.serial(0, channels) as c,
        T.serial(0, phases[0]) as a,
        T.serial(0, phases[1]) as b,
        T.serial(0, extents[0]) as row,
    ):
        line = (first + row) * stride + a - pad
        begin = tirx.max(0, (pad - b + stride - 1) // stride)
        end = tirx.min(extents[1], (width + pad - b + stride - 1) // stride)
        inside = tirx.all(line >= 0, line < height)
        with T.If(inside), T.Then(), T.serial(0, end - begin) as i:
            at = begin + i
            value = x[c, line, at * stride + b - pad]
            T.buffer_store(planes, value, [c, a * phases[1] + b, row * extents[1] + at])


def tvm_dense(case: Case, layer: Layer) -> Callable[[Any], Any]:
    """TVM's dense kernel."""
    processor = find_processor()
    target, lanes = tvm_target(processor), vector_lanes(processor)
    if case.attributes.get("group", 1) > 1:
        return _default_kernel(case, layer, target)
    outputs = case.weight_shape[0]
    weight = layer.weight.reshape(outputs, -1)
    if len(case.weight_shape) == 2:
        function, width = dense_gemm(case.x_shape[0], *weight.shape, lanes=lanes), 2 * lanes
    else:
        function, width = dense_conv(case, lanes), _OUTPUTS
    padding = -outputs % width
    weight, bias = np.pad(weight, ((0, padding), (0, 0))), np.pad(layer.bias, (0, padding))
    packed = weight.reshape(-1, width, weight.shape[1]).transpose(0, 2, 1)
    constants = [tvm.runtime.tensor(np.ascontiguousarray(each)) for each in (packed, bias)]
    run = tvm.compile(tvm.IRModule({"main": function}), target=target)["main"]
    shapes = [tuple(map(int, function.params[i].ty.shape)) for i in (0, -1)]
    y = tvm.runtime.tensor(np.empty(shapes[1], np.float32))
    result = np.from_dlpack(y).reshape(expected(case, layer).shape)

    def dense(x: Any) -> Any:
        run(x._create_view(shapes[0]), *constants, y)
        return result

    return dense


def _default_kernel(case: Case, layer: Layer, target: Any) -> Callable[[Any], Any]:
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
    kernels: list[Callable[[], Any]] = [
        lambda: session.run(None, {"X": layer.x})[0],
        lambda: dense(x),
        lambda: ours(layer.x),
    ]
    for run in kernels:
        result = run()
        got = result if isinstance(result, np.ndarray) else result.numpy()
        error = float(np.abs(got - want).max() / np.abs(want).max())
        if error > TOLERANCE:
            raise RuntimeError(f"{case.name}: error {error:.1e} against numpy")
    *peers, our_kernel = kernels
    (ort, over_ort, mine), (compiled, over_tvm, _) = (
        in_pairs(peer, our_kernel, repeats) for peer in peers
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
