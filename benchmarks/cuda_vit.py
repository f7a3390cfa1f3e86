"""Latency and device memory of the paper's Vision Transformer on a GPU, tiled and dense.

Building needs tbn-compile and a CUDA compiler but no GPU; running needs a GPU, tbn-compile with
TVM's runtime, and a PyTorch with CUDA.

    python benchmarks/cuda_vit.py build FOLDER [--architectures 90]
    python benchmarks/cuda_vit.py run FOLDER

Peers, all with dense weights: the same graph through the same TVM passes, PyTorch eager, and
`torch.compile` (which replays CUDA graphs). Each call starts and ends with tensors on the GPU;
times are medians over rounds in which all take their turn. Memory is what the driver hands out
beyond CUDA's own context, weights, code, graphs and workspace included, at the highest point of a
process that runs nothing else; for PyTorch it is its allocator's peak, which leaves out code.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCHES = (1, 64)
DTYPES = ("float32", "float16")
TILES = (4,)
ROUNDS, CALLS = 30, 10
_CONTEXT = 8 * 2**20


def build(folder: Path, architectures: tuple[str, ...]) -> None:
    """Write an artifact per number of tiles, type and batch, and the dense peers."""
    import torch  # noqa: PLC0415
    from vit import IMAGE, build_vit  # noqa: PLC0415

    from tbn_compile import CompileOptions, compile_model  # noqa: PLC0415
    from tbn_compile.training import export  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    for dtype in DTYPES:
        kind = getattr(torch, dtype)
        for p in (0, *TILES):
            source = folder / f"vit_p{p}_{dtype}.onnx"
            export(build_vit(p).to(kind), source, torch.zeros(1, 3, IMAGE, IMAGE, dtype=kind))
            for batch in BATCHES:
                artifact = folder / f"vit_p{p}_{dtype}_b{batch}.so"
                started = time.perf_counter()
                if p:
                    options = CompileOptions({"batch": batch}, cuda_arch=architectures)
                    compile_model(source, "cuda", artifact, options)
                else:
                    _build_dense(source, artifact, batch, architectures)
                seconds = time.perf_counter() - started
                print(f"{artifact.name}: {artifact.stat().st_size / 1e6:.2f} MB, {seconds:.1f} s")
            source.unlink()


def _build_dense(source: Path, output: Path, batch: int, architectures: tuple[str, ...]) -> None:
    """The same passes, schedules and graph capture; the weights are arguments, to keep it small."""
    import onnx  # noqa: PLC0415
    import tvm  # noqa: PLC0415
    from tvm.relax.frontend.onnx import from_onnx  # noqa: PLC0415

    from tbn_compile.targets.compiled.library import build_library  # noqa: PLC0415
    from tbn_compile.targets.cuda.compilation import machine_code  # noqa: PLC0415
    from tbn_compile.targets.cuda.lowering import lower  # noqa: PLC0415
    from tbn_compile.targets.cuda.schedule import gpu_target  # noqa: PLC0415

    model = onnx.load(source)
    shape = [batch, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    module = from_onnx(model, {model.graph.input[0].name: shape}, keep_params_in_input=True)
    weights = module["main"].attrs["params"]
    module["main"] = module["main"].without_attr("params")
    target = gpu_target({"kind": "llvm", "mcpu": "x86-64"})
    config = {"relax.backend.use_cuda_graph": True}
    with machine_code(architectures) as label, tvm.transform.PassContext(config=config):
        output.write_bytes(label(build_library(lower(module, target, architectures), target)))
    shapes = [[list(map(int, weight.shape)), str(weight.dtype)] for weight in weights]
    output.with_suffix(".json").write_text(json.dumps(shapes))


def run(folder: Path) -> list[dict[str, Any]]:
    """Time every artifact beside its peers and print a table."""
    import torch  # noqa: PLC0415

    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    print("| type | model | device memory, batch 1, MB |\n|---|---|---|")
    rows: list[dict[str, Any]] = []
    for name in (*(f"tiled p={p}" for p in TILES), "dense, same TVM", "dense, PyTorch eager"):
        size = _memory_in_a_process(folder, name, DTYPES[0], 1)
        rows.append({"dtype": DTYPES[0], "model": name, "bytes": size})
        print(f"| {DTYPES[0]} | {name} | {size / 1e6:.1f} |", flush=True)
    print("| type | batch | model | latency, µs | it / tiled | error |\n|---|---|---|---|---|---|")
    for dtype in DTYPES:
        for batch in BATCHES:
            rows += _measure(torch, folder, dtype, batch)
    return rows


def _measure(torch: Any, folder: Path, dtype: str, batch: int) -> list[dict[str, Any]]:
    from vit import IMAGE, build_vit  # noqa: PLC0415

    kind = getattr(torch, dtype)
    x = torch.randn(batch, 3, IMAGE, IMAGE, device="cuda").to(kind)
    dense = build_vit(TILES[0]).to("cuda", kind)
    compiled = torch.compile(dense, mode="reduce-overhead")
    calls: dict[str, Callable[[], Any]] = {}
    for p in TILES:
        calls[f"tiled p={p}"] = _tiled(folder / f"vit_p{p}_{dtype}_b{batch}.so", x)
    calls["dense, same TVM"] = _dense(torch, folder / f"vit_p0_{dtype}_b{batch}.so", x)
    calls["dense, PyTorch eager"] = lambda: dense(x)
    calls["dense, torch.compile"] = lambda: compiled(x)
    with torch.inference_mode():
        times = _times(torch, calls)
        errors = {
            f"tiled p={p}": _error(torch, build_vit(p), x, calls[f"tiled p={p}"]()) for p in TILES
        }
    tiled = times[f"tiled p={TILES[0]}"]
    rows = []
    for name, median in times.items():
        row = {"dtype": dtype, "batch": batch, "model": name, "us": median}
        rows.append(row | {"error": errors.get(name)})
        error = f"{errors[name]:.1e}" if name in errors else ""
        print(f"| {dtype} | {batch} | {name} | {median:.0f} | {median / tiled:.2f}× | {error} |")
        sys.stdout.flush()
    return rows


def _tiled(artifact: Path, x: Any) -> Callable[[], Any]:
    import tbn_compile  # noqa: PLC0415

    model = tbn_compile.load(artifact)
    return lambda: model(x)


def _dense(torch: Any, library: Path, x: Any) -> Callable[[], Any]:
    import tvm  # noqa: PLC0415
    import tvm_ffi  # noqa: PLC0415
    from tvm.runtime.vm import VirtualMachine  # noqa: PLC0415

    from tbn_compile.targets.compiled.cuda_device import find_gpu  # noqa: PLC0415

    find_gpu()
    machine = VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cuda())
    shapes = json.loads(library.with_suffix(".json").read_text())
    weights = [
        tvm_ffi.from_dlpack(
            torch.randn(shape, device="cuda").mul(0.02).to(getattr(torch, dtype))
            if dtype.startswith("float")
            else torch.zeros(shape, dtype=getattr(torch, dtype), device="cuda")
        )
        for shape, dtype in shapes
    ]
    inputs = tvm_ffi.from_dlpack(x)
    return lambda: machine["main"](inputs, *weights)


def _times(torch: Any, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median microseconds of a call; every round times each of them."""
    for call in calls.values():
        for _ in range(5):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(CALLS):
                call()
            torch.cuda.synchronize()
            samples[name].append((time.perf_counter() - started) / CALLS * 1e6)
    return {name: statistics.median(values) for name, values in samples.items()}


def _error(torch: Any, model: Any, x: Any, result: Any) -> float:
    """‖y − float64‖ / ‖float64‖, of up to 8 images."""
    few = x[:8].double()
    reference = model.to("cuda", torch.float64)(few)
    return float((torch.from_dlpack(result)[:8].double() - reference).norm() / reference.norm())


def _memory_in_a_process(folder: Path, name: str, dtype: str, batch: int) -> int:
    command = [sys.executable, __file__, "memory", str(folder), "--model", name]
    command += ["--dtype", dtype, "--batch", str(batch)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(finished.stdout.split()[-1])


def memory(folder: Path, name: str, dtype: str, batch: int) -> int:
    """Bytes of device memory that a model takes beside an idle context."""
    import torch  # noqa: PLC0415
    from vit import IMAGE, build_vit  # noqa: PLC0415

    kind = getattr(torch, dtype)
    if "torch" in name.lower():
        x = torch.zeros(batch, 3, IMAGE, IMAGE, device="cuda", dtype=kind)
        model = build_vit(TILES[0]).to("cuda", kind)
        with torch.inference_mode():
            model(x)
        return int(torch.cuda.max_memory_allocated())
    x = torch.zeros(batch, 3, IMAGE, IMAGE, device="cuda", dtype=kind)
    torch.empty(_CONTEXT, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    before = torch.cuda.memory_reserved()
    suffix = f"_{dtype}_b{batch}.so"
    call = (
        _dense(torch, folder / f"vit_p0{suffix}", x)
        if name.startswith("dense")
        else _tiled(folder / f"vit_p{name[-1]}{suffix}", x)
    )
    results = [call() for _ in range(3)]
    torch.cuda.synchronize()
    del results
    torch_grew = torch.cuda.memory_reserved() - before
    weights = torch.cuda.memory_allocated() if torch_grew else 0
    return free - torch.cuda.mem_get_info()[0] - torch_grew + weights


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="The paper's ViT on a GPU")
    parser.add_argument("action", choices=("build", "run", "memory"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architectures", default="90", help="for build, such as 80,90")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.action == "build":
        build(arguments.folder, tuple(arguments.architectures.split(",")))
    elif arguments.action == "memory":
        print(memory(arguments.folder, arguments.model, arguments.dtype, arguments.batch))
    else:
        rows = run(arguments.folder)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
