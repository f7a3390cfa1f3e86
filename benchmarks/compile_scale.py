"""How compile time and memory grow with the model: 40 tiled layers of external data.

Run `python benchmarks/compile_scale.py [megabytes ...]`. Each size is compiled in a process of its
own, whose peak resident memory is read back. The bound is the one that the format promises:
dense bytes / (32 · p), plus the scales.
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

_MEASURED = """
import json, sys, time
from pathlib import Path
from tbn_compile import compile_model
started = time.perf_counter()
report = compile_model(sys.argv[1], output=sys.argv[2])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({
    "seconds": time.perf_counter() - started,
    "peak": int(status["VmHWM"].split()[0]) * 1024,
    "lowered": len(report.lowered),
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
        started = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-P", "-c", _MEASURED, source, folder / "out.onnx"],
            check=True,
            capture_output=True,
            text=True,
        )
        figures = json.loads(result.stdout)
    figures["process"] = time.perf_counter() - started
    return {**figures, "dense": dense, "bound": dense / (32 * TILES) + 4 * LAYERS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("megabytes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    rows = [measure(size) for size in arguments.megabytes]
    if arguments.json:
        print(json.dumps(rows))
        return
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
    Console().print(table)


if __name__ == "__main__":
    main()
