"""Times our ONNX Runtime kernels beside its own dense float32 kernels, one thread, in one run.

Every row builds a dense model and our model of the same layer, checks both against numpy, then
runs them in turn; the ratio is the median over the pairs of runs.

    python benchmarks/ort_kernels.py [--library PATH] [--json] [--repeats N] [--only TEXT]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

TOLERANCE = {"float32": 2e-5, "float16": 2e-3}
"""Largest error relative to the largest output."""


@dataclass(frozen=True)
class Case:
    """A layer of `weight_shape` whose tile repeats p times, on an input of `x_shape`."""

    name: str
    weight_shape: tuple[int, ...]
    x_shape: tuple[int, ...]
    p: int
    dtype: str = "float32"
    unaligned: bool = False
    target: float | None = None
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def tile_length(self) -> int:
        """Weights in a tile; one less than a multiple of a row when unaligned."""
        return math.prod(self.weight_shape) // self.p - self.unaligned


@dataclass(frozen=True)
class Result:
    """Medians in microseconds; `ratio` is dense time over ours."""

    name: str
    dtype: str
    p: int
    dense_us: float
    ours_us: float
    ratio: float
    target: float | None
    error: float


def gemm(rows: int, outputs: int, inputs: int, p: int, **options: Any) -> Case:
    return Case(f"Gemm {rows}x{outputs}x{inputs}", (outputs, inputs), (rows, inputs), p, **options)


def conv(outputs: int, channels: int, kernel: int, size: int, p: int, **options: Any) -> Case:
    attributes = {"pads": [kernel // 2] * 4, **options.pop("attributes", {})}
    group = attributes.get("group", 1)
    shape = (outputs, channels // group, kernel, kernel)
    kind = "depthwise " if group == channels > 1 else ""
    stride = f" stride {attributes['strides'][0]}" if "strides" in attributes else ""
    name = f"Conv {kind}{channels}->{outputs} {kernel}x{kernel} on {size}x{size}{stride}"
    return Case(name, shape, (1, channels, size, size), p, attributes=attributes, **options)


CASES = [
    gemm(1, 4096, 4096, 4, target=8.0),
    gemm(1, 4096, 4096, 1),
    gemm(1, 4096, 4096, 4, unaligned=True),
    gemm(1, 4096, 4096, 4, dtype="float16"),
    gemm(8, 4096, 4096, 4),
    gemm(64, 1024, 1024, 4, target=3.0),
    gemm(64, 1024, 1024, 1),
    gemm(64, 1024, 1024, 4, unaligned=True),
    gemm(64, 1024, 1024, 4, dtype="float16"),
    gemm(256, 1024, 1024, 8, target=6.0),
    gemm(256, 1024, 1024, 1),
    gemm(197, 1536, 384, 4),
    gemm(197, 384, 1536, 4),
    conv(128, 128, 3, 28, 4, target=3.0),
    conv(128, 128, 3, 28, 1),
    conv(128, 128, 3, 28, 4, unaligned=True),
    conv(128, 128, 3, 28, 4, dtype="float16"),
    conv(64, 64, 3, 56, 4),
    conv(256, 256, 3, 14, 4),
    conv(512, 512, 3, 7, 8),
    conv(128, 64, 3, 56, 4, attributes={"strides": [2, 2]}),
    conv(256, 64, 1, 56, 4),
    conv(64, 256, 1, 56, 4),
    conv(64, 3, 7, 224, 1, attributes={"strides": [2, 2]}),
    conv(32, 1, 3, 28, 1),
    conv(64, 2, 3, 32, 1),
    conv(32, 3, 3, 224, 1, attributes={"strides": [2, 2]}),
    conv(128, 128, 3, 28, 1, attributes={"group": 128}),
    conv(128, 128, 5, 28, 1, attributes={"group": 128}),
    conv(128, 128, 3, 56, 1, attributes={"group": 128}),
    conv(64, 64, 3, 112, 1, attributes={"group": 64, "strides": [2, 2]}),
    conv(512, 512, 3, 7, 1, attributes={"group": 512}),
    conv(64, 32, 3, 28, 1, attributes={"group": 32}),
]


@dataclass(frozen=True)
class Layer:
    """The tensors of a case."""

    bits: npt.NDArray[np.uint8]
    scale: np.float32
    bias: npt.NDArray[np.float32]
    x: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]


def make_layer(case: Case, rng: np.random.Generator) -> Layer:
    bits = rng.integers(0, 2, case.tile_length).astype(np.uint8)
    scale = np.float32(rng.uniform(0.5, 2.0))
    signs = np.resize(bits, math.prod(case.weight_shape)).astype(np.float32) * 2 - 1
    return Layer(
        bits,
        scale,
        rng.normal(size=case.weight_shape[0]).astype(np.float32),
        rng.normal(size=case.x_shape).astype(np.float32),
        (signs * scale).reshape(case.weight_shape),
    )


def make_model(case: Case, layer: Layer, *, dense: bool) -> onnx.ModelProto:
    """One operator from X to Y; a float16 layer takes and gives float16, its dense peer float32."""
    kind = "Conv" if len(case.weight_shape) > 2 else "Gemm"
    dtype = np.dtype("float32" if dense else case.dtype)
    tensors: dict[str, np.ndarray] = {"weight": layer.weight, "bias": layer.bias}
    attributes = {**case.attributes, **({"transB": 1} if kind == "Gemm" else {})}
    if not dense:
        scale = np.array([layer.scale], dtype)
        tile = np.packbits(layer.bits, bitorder="little")
        tensors = {"tile": tile, "scale": scale, "bias": layer.bias.astype(dtype)}
        attributes |= {"weight_shape": list(case.weight_shape), "scale_length": 1}
        attributes |= {"tile_length": case.tile_length}
    node = helper.make_node(
        kind if dense else f"TiledBinary{kind}",
        ["X", *tensors],
        ["Y"],
        domain="" if dense else "ai.tbn",
        **attributes,
    )
    element = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("X", element, case.x_shape)],
        [helper.make_tensor_value_info("Y", element, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.tbn", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def make_session(model: onnx.ModelProto, library: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def expected(case: Case, layer: Layer) -> npt.NDArray[np.float64]:
    """The layer in numpy, float64."""
    x, weight = layer.x.astype(np.float64), layer.weight.astype(np.float64)
    if len(case.weight_shape) == 2:
        return x @ weight.T + layer.bias
    group = case.attributes.get("group", 1)
    stride = case.attributes.get("strides", [1, 1])[0]
    pad = case.attributes["pads"][0]
    padded = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    kernel = case.weight_shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))
    windows = windows[0, :, ::stride, ::stride]
    channels, height, width = windows.shape[:3]
    outputs: list[npt.NDArray[np.float64]] = []
    for part, rows in zip(
        windows.reshape(group, channels // group, height, width, *kernel),
        weight.reshape(group, -1, math.prod(case.weight_shape[1:])),
        strict=True,
    ):
        columns = part.transpose(1, 2, 0, 3, 4).reshape(height * width, -1)
        outputs.append((columns @ rows.T).T.reshape(-1, height, width))
    return (np.concatenate(outputs) + layer.bias[:, None, None])[None]


def microseconds(session: onnxruntime.InferenceSession, x: npt.NDArray[Any]) -> float:
    start = time.perf_counter()
    session.run(None, {"X": x})
    return (time.perf_counter() - start) * 1e6


def measure(case: Case, library: str, repeats: int) -> Result:
    """Check both kernels against numpy, then time them in turn.

    Raises:
        RuntimeError: if either result is off.
    """
    layer = make_layer(case, np.random.default_rng(0))
    want = expected(case, layer)
    ours = make_session(make_model(case, layer, dense=False), library)
    dense = make_session(make_model(case, layer, dense=True), library)
    x = layer.x.astype(case.dtype)
    errors: list[float] = []
    for session, value, dtype in ((dense, layer.x, "float32"), (ours, x, case.dtype)):
        got = np.asarray(session.run(None, {"X": value})[0])
        errors.append(float(np.abs(got - want).max() / np.abs(want).max()))
        if errors[-1] > TOLERANCE[dtype]:
            raise RuntimeError(f"{case.name}: error {errors[-1]:.1e} against numpy")
    pairs = [(microseconds(dense, layer.x), microseconds(ours, x)) for _ in range(repeats)]
    return Result(
        case.name + (" unaligned" if case.unaligned else ""),
        case.dtype,
        case.p,
        statistics.median(pair[0] for pair in pairs),
        statistics.median(pair[1] for pair in pairs),
        statistics.median(pair[0] / pair[1] for pair in pairs),
        case.target,
        errors[-1],
    )


def print_table(results: list[Result]) -> None:
    table = Table(title="One thread, against ONNX Runtime's dense float32 kernel")
    for title in ("layer", "type", "p", "dense µs", "ours µs", "ratio", "target", "error"):
        justify: Any = "left" if title in {"layer", "type"} else "right"
        table.add_column(title, justify=justify, no_wrap=True)
    for r in results:
        target = "" if r.target is None else f"{r.target:g}"
        times = f"{r.dense_us:.0f}", f"{r.ours_us:.0f}", f"{r.ratio:.1f}"
        table.add_row(r.name, r.dtype, str(r.p), *times, target, f"{r.error:.0e}")
    Console(width=120).print(table)


def installed_library() -> str:
    from tbn_compile import get_library_path  # noqa: PLC0415 -- only without --library

    return get_library_path()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--library", type=Path, help="library to time; default: the installed one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=40, help="pairs of runs a row")
    parser.add_argument("--only", default="", help="only rows whose name contains this text")
    arguments = parser.parse_args()
    library = str(arguments.library or installed_library())
    cases = [case for case in CASES if arguments.only in case.name]
    results = [measure(case, library, arguments.repeats) for case in cases]
    if arguments.json:
        document = {"schema_version": 1, "results": [asdict(result) for result in results]}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        print_table(results)
    return 0 if all(r.target is None or r.ratio >= r.target for r in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
