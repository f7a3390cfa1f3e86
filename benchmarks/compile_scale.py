"""How compile time and memory grow with the model; each is compiled in a process of its own.

    python benchmarks/compile_scale.py [megabytes ...]
    python benchmarks/compile_scale.py --target llvm [--depths 3 6 12 24]

Without a target: 40 tiled layers of external data for ONNX Runtime, by size. The bound is the one
that the format promises: dense bytes / (32 · p), plus the scales. With one: the Vision Transformer
of `vit.py`, p = 4, by depth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from math import isqrt
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from rich.console import Console
from rich.table import Table

LAYERS = 40
TILES = 4
SIZES = (100, 300, 600, 1200)
DEPTHS = (3, 6, 12, 24)

_MEASURED = """
import json, sys, time
from pathlib import Path
from tbn_compile import compile_model
started = time.perf_counter()
report = compile_model(sys.argv[1], sys.argv[3], sys.argv[2])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({
    "seconds": time.perf_counter() - started,
    "peak": int(status["VmHWM"].split()[0]) * 1024,
    "lowered": len(report.lowered),
    "layers": len(report.layers),
    "bytes": Path(sys.argv[2]).stat().st_size,
    "phases": report.phases,
}))
"""


def write_model(folder: Path, megabytes: int) -> Path:
    """A chain of square MatMuls whose weights, of so many megabytes together, lie in one file."""
    width = isqrt(megabytes * 10**6 // (4 * LAYERS)) // 16 * 16
    length = width * width // TILES
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    with (folder / "weights.bin").open("wb") as data:
        for index in range(LAYERS):
            tile = generator.choice([-0.02, 0.02], length).astype(np.float32)
            tensor = onnx.TensorProto(
                name=f"w{index}",
                data_type=onnx.TensorProto.FLOAT,
                dims=[width, width],
                data_location=onnx.TensorProto.EXTERNAL,
            )
            tensor.external_data.add(key="location", value="weights.bin")
            tensor.external_data.add(key="offset", value=str(data.tell()))
            tensor.external_data.add(key="length", value=str(4 * width * width))
            for _ in range(TILES):
                tile.tofile(data)
            weights.append(tensor)
            values = [f"x{index}", f"w{index}"]
            nodes.append(helper.make_node("Gemm", values, [f"x{index + 1}"], transB=1))
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])
        for name in ("x0", f"x{LAYERS}")
    ]
    graph = helper.make_graph(nodes, "scale", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def measure(megabytes: int) -> dict[str, float]:
    """Write, compile and measure one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_model(folder, megabytes)
        dense = (folder / "weights.bin").stat().st_size
        figures = compile_apart(source, "ort", folder / "out.onnx")
    return {**figures, "dense": dense, "bound": dense / (32 * TILES) + 4 * LAYERS}


def measure_depth(depth: int, target: str) -> dict[str, float]:
    """Export, compile and measure the Vision Transformer of one depth."""
    import torch  # noqa: PLC0415 -- the other table does without
    from vit import IMAGE, build_vit  # noqa: PLC0415

    from tbn_compile.training import export  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "vit.onnx"
        export(build_vit(TILES, depth), source, torch.zeros(1, 3, IMAGE, IMAGE))
        return {"depth": depth, **compile_apart(source, target, Path(name) / "vit.out")}


def compile_apart(source: Path, target: str, output: Path) -> dict[str, float]:
    """Compile in a process of its own."""
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-P", "-c", _MEASURED, source, output, target],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return {**figures, "process": time.perf_counter() - started}


def size_table(rows: list[dict[str, float]]) -> Table:
    table = Table(title=f"{LAYERS} layers, p = {TILES}")
    for title in ("dense MB", "seconds", "peak MB", "output bytes", "bound bytes", "above bound"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            f"{row['dense'] / 1e6:.0f}",
            f"{row['seconds']:.1f}",
            f"{row['peak'] / 1e6:.0f}",
            f"{row['bytes']:,}",
            f"{row['bound']:,.0f}",
            f"{row['bytes'] - row['bound']:,.0f}",
        )
    return table


def depth_table(rows: list[dict[str, float]], target: str) -> Table:
    table = Table(title=f"Vision Transformer, p = {TILES}, target {target}")
    for title in ("depth", "tiled layers", "seconds", "peak MB", "output MB"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            str(row["depth"]),
            f"{row['lowered']} of {row['layers']}",
            f"{row['seconds']:.1f}",
            f"{row['peak'] / 1e6:.0f}",
            f"{row['bytes'] / 1e6:.2f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("megabytes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--target", help="measure the Vision Transformer for this target instead")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    if arguments.target:
        rows = [measure_depth(depth, arguments.target) for depth in arguments.depths]
    else:
        rows = [measure(size) for size in arguments.megabytes]
    if arguments.json:
        print(json.dumps(rows))
        return
    Console().print(depth_table(rows, arguments.target) if arguments.target else size_table(rows))


if __name__ == "__main__":
    main()
