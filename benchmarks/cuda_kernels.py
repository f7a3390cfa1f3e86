"""Times our CUDA kernels beside cuBLAS and cuDNN on the dense weights, in one run, as CUDA graphs.

Building needs tbn-compile and a CUDA compiler but no GPU; running needs a GPU, PyTorch, tvm-ffi and
the folder with TVM's runtime libraries, but neither tbn-compile nor TVM's compiler.

    python benchmarks/cuda_kernels.py build FOLDER
    python benchmarks/cuda_kernels.py run FOLDER --runtime TVM_LIBRARIES [--only TEXT]

The first table is of Hopper's kernels, the second of those for any architecture, on the same card.
TF32 is off.

Every kernel is checked against float64 first, on fresh random input and a poisoned output, and must
give the same bits twice. A row's time is the median over replays of a graph of twenty calls. "cold"
rotates among weights that exceed the L2 cache together. The roofline is the larger of bytes over
the copy bandwidth and operations over the rate of a large cuBLAS product, both measured in the same
run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

CALLS, REPLAYS = 20, 25
TOLERANCE = {"float16": 6e-4, "bfloat16": 5e-3, "float32": 1e-6}
"""Largest ‖y − reference‖ / ‖reference‖; the rounding of y to 16 bits costs 2e-4 and 1.7e-3."""


@dataclass(frozen=True)
class Case:
    """y[M, N] = x[M, K] · Wᵀ with W a tile of N / p rows, repeated p times."""

    m: int
    n: int
    k: int
    p: int
    dtype: str = "float16"
    scaling: str = "row"
    activation: str = "none"
    dynamic: bool = False
    architecture: str = "90"
    cold: bool = False
    target: float | None = None

    @property
    def name(self) -> str:
        """For a row of the table."""
        marks = [word for word in ("dynamic", "cold") if getattr(self, word)]
        sizes = f"{self.m}×{self.n}×{self.k} p={self.p}"
        if self.target is not None:
            return " ".join([sizes, *marks])
        how = (self.dtype, self.scaling, self.activation, self.architecture)
        return " ".join([sizes, *how, *marks])

    @property
    def file(self) -> str:
        """Of its library; cold and warm rows share one."""
        kind = (self.dtype, self.scaling, self.activation, self.dynamic, self.architecture)
        return "_".join(map(str, (self.m, self.n, self.k, self.p, *kind))) + ".so"


@dataclass(frozen=True)
class Convolution:
    """A square window over square images, padded so that places are kept; stride as it is."""

    batch: int
    channels: int
    outputs: int
    size: int
    window: int
    p: int
    dtype: str = "float16"
    stride: int = 1
    timed: bool = False

    @property
    def name(self) -> str:
        """For a row of the table."""
        window = f"{self.window}×{self.window}" + (f"/{self.stride}" if self.stride > 1 else "")
        images = f"{self.batch}×{self.size}×{self.size}"
        return f"{self.channels}→{self.outputs} {window} on {images} p={self.p} {self.dtype}"

    @property
    def file(self) -> str:
        """Of its library."""
        sizes = (self.batch, self.channels, self.outputs, self.size, self.window, self.stride)
        return f"conv_{'_'.join(map(str, sizes))}_{self.p}_{self.dtype}.so"

    @property
    def result(self) -> int:
        """Rows and columns of y."""
        return (self.size + self.window // 2 * 2 - self.window) // self.stride + 1


TIMED = [
    Case(*shape, p, cold=cold, target=target)
    for shape, targets, colds in (
        ((8192, 4096, 4096), (3.2, 5.5), (False,)),
        ((4096, 16384, 4096), (3.2, 5.5), (False,)),
        ((12608, 1536, 384), (1.5, 1.7), (False,)),
        ((12608, 384, 1536), (1.4, 1.5), (False,)),
        ((1, 16384, 16384), (15, 20), (True, False)),
        ((16, 16384, 16384), (10, 12), (True, False)),
        ((1, 4096, 4096), (2.5, 2.5), (False,)),
    )
    for p, target in zip((4, 8), targets, strict=True)
    for cold in colds
]
CHECKED: list[Case | Convolution] = [
    Case(200, 480, 328, 3, "float16", "row", "relu"),
    Case(5, 480, 328, 3, "float16", "tile", "relu"),
    Case(1, 24, 8, 3, "bfloat16", "layer"),
    Case(130, 1000, 136, 1, "bfloat16", "layer", "gelu"),
    Case(17, 768, 1000, 4, "bfloat16", "row", dynamic=True),
    Case(3000, 768, 1000, 4, "bfloat16", "tile", "relu", dynamic=True),
    Case(16, 768, 1000, 4, "float16", "row", "gelu_tanh", dynamic=True),
    Case(2, 768, 4104, 4, "float16", "row", "gelu", dynamic=True),
    Case(9, 4096, 4096, 4, "bfloat16", "row", "relu"),
    Case(97, 384, 1536, 8, "bfloat16", "row", "relu"),
    Case(1, 480, 328, 3, "float16", "tile", "relu", architecture="80"),
    Case(203, 480, 328, 3, "bfloat16", "row", "gelu", architecture="80"),
    Case(77, 4096, 4096, 4, "float16", "row", dynamic=True, architecture="80"),
    Case(300, 480, 328, 3, "float32", "row", "gelu"),
    Case(9, 480, 328, 3, "float32", "tile", "relu"),
    Case(1, 4096, 4096, 4, "float32", "row", architecture="80"),
    Case(130, 10, 147, 1, "float32", "row"),
    Case(33, 30, 100, 3, "float16", "row", "relu"),
    Case(5000, 1000, 136, 4, "bfloat16", "tile", dynamic=True, architecture="80"),
    Convolution(3, 16, 96, 11, 3, 4, "bfloat16"),
    Convolution(2, 3, 64, 33, 7, 2, "float32", stride=2),
    Convolution(2, 40, 48, 9, 5, 3, "float16"),
]
GENERAL: list[Case | Convolution] = [
    *(
        Case(*sizes, 4, dtype, architecture="80")
        for dtype in ("float16", "float32")
        for sizes in ((8192, 4096, 4096), (12608, 1536, 384), (65, 3072, 1024), (65, 1024, 2048))
    ),
    *(
        Convolution(*sizes, dtype, stride, timed=True)
        for dtype in ("float16", "float32")
        for sizes, stride in (
            ((32, 64, 64, 56, 3, 4), 1),
            ((32, 64, 64, 56, 3, 1), 1),
            ((32, 256, 256, 14, 3, 4), 1),
            ((1, 256, 256, 14, 3, 4), 1),
            ((32, 3, 64, 224, 7, 1), 2),
        )
    ),
]


def build(folder: Path) -> None:
    """Write one library per case, with machine code for compute capability 9.0."""
    import tvm  # noqa: PLC0415

    from tbn_compile.targets.cuda.compilation import machine_code  # noqa: PLC0415
    from tbn_compile.targets.cuda.sources import ACTIVATIONS, clip_step  # noqa: PLC0415
    from tbn_compile.targets.cuda.tiled_conv import ConvProblem, conv_function  # noqa: PLC0415
    from tbn_compile.targets.cuda.tiled_gemm import (  # noqa: PLC0415
        GemmProblem,
        gemm_function,
        sums_shape,
    )

    folder.mkdir(parents=True, exist_ok=True)
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90a"}, host="llvm")
    statements = {"none": (), "relu": (clip_step(0.0, float("inf")),)}
    statements |= {name: (text,) for name, text in ACTIVATIONS.items()}

    def function_of(case: Case | Convolution) -> tuple[Any, tuple[int, ...] | None]:
        """A TIR function, and the shape of the sums that it wants beside its result."""
        if isinstance(case, Convolution):
            function = conv_function(
                ConvProblem(
                    dtype=case.dtype,
                    batch=case.batch,
                    channels=case.channels,
                    extents=(case.size,) * 2,
                    results=(case.result,) * 2,
                    kernel=(case.window,) * 2,
                    strides=(case.stride,) * 2,
                    dilations=(1, 1),
                    pads=(case.window // 2,) * 2,
                    rows=case.outputs // case.p,
                    copies=case.p,
                )
            )
            return function, None
        batch = None if case.dynamic else case.m
        steps = statements[case.activation]
        problem = GemmProblem(case.dtype, batch, case.n // case.p, case.p, case.k, steps)
        return gemm_function(problem, [case.architecture]), sums_shape(problem)

    cases: list[Case | Convolution] = [*TIMED, *CHECKED, *GENERAL]
    for case in cases:
        path = folder / case.file
        function, sums = function_of(case)
        path.with_suffix(".json").write_text(json.dumps(sums))
        function = function.with_attr("global_symbol", "main")
        with machine_code(["90"]) as label:
            tvm.compile(tvm.IRModule({"main": function}), target=target).export_library(str(path))
            path.write_bytes(label(path.read_bytes()))


def run(folder: Path, only: str) -> list[dict[str, Any]]:
    """Check every case, time those of the two tables, and print them."""
    import torch  # noqa: PLC0415
    import tvm_ffi  # noqa: PLC0415

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    bandwidth, rate = _ceilings(torch)
    card = torch.cuda.get_device_name()
    rows = []

    def measure(case: Case | Convolution) -> None:
        if only not in case.name:
            return
        kernel = tvm_ffi.load_module(str(folder / case.file))["main"]
        shape = json.loads((folder / case.file).with_suffix(".json").read_text())
        sums = [torch.empty(shape, device="cuda")] if shape else []

        def function(*tensors: Any) -> None:
            kernel(*tensors, *sums)

        if isinstance(case, Convolution):
            row = _measure_convolution(torch, case, function)
        else:
            row = _measure(torch, case, function, bandwidth, rate, timed=case not in CHECKED)
        rows.append(row)
        print(_line(case, row), flush=True)
        torch.cuda.empty_cache()

    print(f"{card}: copy {bandwidth / 1e12:.2f} TB/s, cuBLAS {rate / 1e12:.0f} TFLOP/s")
    print(
        "| M×N×K, p | cuBLAS dense, µs | distinct rows + copy | roofline | ours | of roofline "
        "| ours / dense | target | error |\n|---|---|---|---|---|---|---|---|---|"
    )
    for case in [*CHECKED, *TIMED]:
        measure(case)
    print(
        "\n| kernels for any architecture | library dense, µs | channels last | ours "
        "| ours / dense | error |\n|---|---|---|---|---|---|"
    )
    for case in GENERAL:
        measure(case)
    return rows


def _measure(
    torch: Any,
    case: Case,
    function: Callable[..., None],
    bandwidth: float,
    rate: float,
    *,
    timed: bool,
) -> dict[str, Any]:
    kind, rows = getattr(torch, case.dtype), case.n // case.p
    negative = torch.rand(rows, case.k, device="cuda") < 0.5
    scale = {
        "layer": torch.full((case.n,), 0.7),
        "tile": torch.rand(case.p).repeat_interleave(rows) + 0.5,
        "row": torch.rand(case.n) + 0.5,
    }[case.scaling].cuda()
    bias = torch.randn(case.n, device="cuda")
    x = torch.randn(case.m, case.k, device="cuda", dtype=kind)
    signs = torch.where(negative, -1.0, 1.0)
    y = torch.full((case.m, case.n), float("nan"), device="cuda", dtype=kind)
    words = pack(torch, negative)
    torch.cuda.synchronize()  # constants may be read before what runs ahead of a kernel ends
    function(x, words, scale, bias, y)
    again = torch.empty_like(y)
    function(x, words, scale, bias, again)
    same = torch.equal(y, again)
    error = _error(torch, case, x, signs, scale, bias, y) if same else float("inf")
    row: dict[str, Any] = {**asdict(case), "error": error, "right": error < TOLERANCE[case.dtype]}
    if not timed:
        return row
    sets = range(16 if case.cold else 1)
    dense = (signs.repeat(case.p, 1) * scale[:, None]).to(kind)
    denses = [dense, *(dense.clone() for i in sets if i and dense.nbytes < 2**28)]
    distincts = [signs.to(kind) for _ in sets]
    packed = [words.clone() for _ in sets]
    u = torch.empty(case.m, rows, device="cuda", dtype=kind)
    copies = y.view(case.m, case.p, rows)

    def reuse(weight: Any) -> None:
        torch.mm(x, weight.t(), out=u)
        copies.copy_(u.view(case.m, 1, rows).expand(case.m, case.p, rows))

    flops = 2 * case.m * rows * case.k
    size = x.nbytes + y.nbytes + negative.numel() / 8 + scale.nbytes + bias.nbytes
    row |= {
        "dense_us": median_us(
            torch, [_bind(lambda w: torch.mm(x, w.t(), out=y), w) for w in denses]
        ),
        "distinct_us": median_us(torch, [_bind(reuse, w) for w in distincts]),
        "ours_us": median_us(
            torch, [_bind(lambda w: function(x, w, scale, bias, y), w) for w in packed]
        ),
        "roofline_us": 1e6 * max(size / bandwidth, flops / rate),
    }
    return row


def _measure_convolution(
    torch: Any, case: Convolution, function: Callable[..., None]
) -> dict[str, Any]:
    kind, rows = getattr(torch, case.dtype), case.outputs // case.p
    places = (case.window, case.window)
    signs = torch.randint(0, 2, (rows, case.channels, *places), device="cuda") * 2.0 - 1
    scale = torch.rand(case.outputs, device="cuda") + 0.5
    bias = torch.randn(case.outputs, device="cuda")
    x = torch.randn(case.batch, case.channels, case.size, case.size, device="cuda", dtype=kind)
    words = pack(torch, signs.flatten(2).swapaxes(1, 2).flatten(1) < 0)
    shape = (case.batch, case.outputs, case.result, case.result)
    y = torch.full(shape, float("nan"), device="cuda", dtype=kind)
    again = y.clone()
    for result in (y, again):
        function(x, words, scale, bias, result)
    dense = signs.repeat(case.p, 1, 1, 1) * scale[:, None, None, None]
    window: dict[str, Any] = {"stride": case.stride, "padding": case.window // 2}
    convolve = torch.nn.functional.conv2d
    reference = convolve(x[-2:].double(), dense.double(), bias.double(), **window)
    error = float((y[-2:].double() - reference).norm() / reference.norm())
    if not torch.equal(y, again) or bool(torch.isnan(y).any()):
        error = float("inf")
    row: dict[str, Any] = {**asdict(case), "error": error, "right": error < TOLERANCE[case.dtype]}
    if not case.timed:
        return row
    for name, layout in (("dense_us", "contiguous_format"), ("last_us", "channels_last")):
        memory = getattr(torch, layout)
        operands = [value.to(kind).contiguous(memory_format=memory) for value in (x, dense)]
        row[name] = median_us(torch, [partial(convolve, *operands, **window)])
    return row | {"ours_us": median_us(torch, [lambda: function(x, words, scale, bias, y)])}


def pack(torch: Any, negative: Any) -> Any:
    """`tbn_compile.targets.cuda.tiled_gemm.pack_words` on the GPU, of the inverted signs."""
    rows, inputs = negative.shape
    blocks = -(-inputs // 128)
    padded = torch.zeros(rows, blocks * 128, dtype=torch.bool, device="cuda")
    padded[:, :inputs] = negative
    bits = padded.reshape(rows, blocks, 8, 2, 4, 2).permute(1, 0, 4, 5, 2, 3)
    weights = 1 << torch.arange(32, device="cuda", dtype=torch.int64)
    words = (bits.reshape(blocks, rows, 4, 32).long() * weights).sum(-1)
    return words.to(torch.uint32)


def median_us(torch: Any, calls: Sequence[Callable[[], None]]) -> float:
    """Median time of one call, the calls taken in turn inside one graph."""
    count = max(CALLS, len(calls))
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / count)
    return statistics.median(times)


def _error(torch: Any, case: Case, x: Any, signs: Any, scale: Any, bias: Any, y: Any) -> float:
    """Of a sample of rows against float64; infinite if an element was not written."""
    if bool(torch.isnan(y).any()):
        return float("inf")
    sample = torch.randint(0, case.m, (64,), device="cuda")
    sample[-1] = case.m - 1
    reference = (x[sample].double() @ signs.double().t()).repeat(1, case.p)
    reference = reference * scale.double() + bias.double()
    reference = {
        "none": lambda value: value,
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda value: torch.nn.functional.gelu(value, approximate="tanh"),
    }[case.activation](reference)
    return float((y[sample].double() - reference).norm() / reference.norm())


def _ceilings(torch: Any) -> tuple[float, float]:
    source = torch.randn(2**30, device="cuda", dtype=torch.float16)
    target = torch.empty_like(source)
    copy = median_us(torch, [lambda: torch.neg(source, out=target)])
    a, b, c = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(3))
    product = median_us(torch, [lambda: torch.mm(a, b.t(), out=c)])
    return 2 * source.nbytes / copy * 1e6, 2 * 8192**3 / product * 1e6


def _bind(function: Callable[[Any], None], argument: Any) -> Callable[[], None]:
    return lambda: function(argument)


def _line(case: Case | Convolution, row: dict[str, Any]) -> str:
    verdict = f"{row['error']:.1e}{'' if row['right'] else ' WRONG'}"
    if "ours_us" not in row:
        return f"| {case.name} | | | | | | | | {verdict} |"
    ours, dense = row["ours_us"], row["dense_us"]
    if isinstance(case, Convolution) or case.target is None:
        last = f"{row['last_us']:.1f}" if "last_us" in row else ""
        return (
            f"| {case.name} | {dense:.1f} | {last} | {ours:.1f} | {dense / ours:.2f}× | {verdict} |"
        )
    roofline = row["roofline_us"]
    return (
        f"| {case.name} | {dense:.1f} | {row['distinct_us']:.1f} | {roofline:.1f} | {ours:.1f} "
        f"| {roofline / ours:.0%} | {dense / ours:.2f}× | {case.target}× | {verdict} |"
    )


def command_line(
    description: str,
    build: Callable[[Path], None],
    run: Callable[[Path, str], list[dict[str, Any]]],
) -> None:
    """Read the command line of a benchmark that is built on one machine and run on another."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("action", choices=("build", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runtime", type=Path, help="folder with libtvm_runtime.so")
    parser.add_argument("--only", default="", help="run cases whose name holds this")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    if arguments.action == "build":
        build(arguments.folder)
        return
    if arguments.runtime is None:
        parser.error("run needs --runtime")
    for name in ("libtvm_runtime.so", "libtvm_runtime_cuda.so"):
        ctypes.CDLL(str(arguments.runtime / name), mode=ctypes.RTLD_GLOBAL)
    rows = run(arguments.folder, arguments.only)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if not all(row["right"] for row in rows):
        raise SystemExit("some results are wrong")


if __name__ == "__main__":
    command_line("CUDA kernels beside cuBLAS", build, run)
