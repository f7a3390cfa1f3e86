"""How long a large model takes to compile, how much memory, and how large the result is.

Makes chains of tiled Gemm layers with external data (p = 4, a scale per tile), compiles each in a
process of its own and prints a row per size. Peak memory is that process's maximum resident set.

Usage: python benchmarks/compile_scale.py [MEGABYTES ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

LAYERS, TILES, SEED = 40, 4, 0
SECONDS, MEMORY = 60.0, 1.5e9
PROBE = """
import json, resource, sys
from tbn_compile import compile_model
report = compile_model(sys.argv[1], output=sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"layers": len(report.lowered), "bytes": report.artifact_bytes, "peak": peak}))
"""


def make_model(folder: Path, megabytes: int) -> Path:
    """Write a chain of square layers whose float32 weights fill `megabytes`, as external data."""
    rng = np.random.default_rng(SEED)
    width = int((megabytes * 1e6 / 4 / LAYERS) ** 0.5) // 16 * 16
    path = folder / f"chain_{megabytes}.onnx"
    initializers = []
    with path.with_suffix(".data").open("wb") as data:
        for layer in range(LAYERS):
            weight = _tiled_weight(rng, width)
            tensor = TensorProto(
                name=f"weight_{layer}", data_type=TensorProto.FLOAT, dims=weight.shape
            )
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": path.with_suffix(".data").name, "offset": data.tell()}
            for key, value in {**place, "length": weight.nbytes}.items():
                tensor.external_data.add(key=key, value=str(value))
            data.write(weight.tobytes())
            initializers.append(tensor)
    nodes = [
        helper.make_node("Gemm", [f"x{n}", f"weight_{n}"], [f"x{n + 1}"], f"layer_{n}", transB=1)
        for n in range(LAYERS)
    ]
    ends = [helper.make_tensor_value_info(f"x{n}", 1, ["batch", width]) for n in (0, LAYERS)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def _tiled_weight(rng: np.random.Generator, width: int) -> np.ndarray:
    tile = rng.choice(np.array([-1, 1], np.float32), width * width // TILES)
    scale = rng.uniform(0.01, 0.1, (TILES, 1)).astype(np.float32)
    return (scale * tile).reshape(width, width)


def measure(megabytes: list[int]) -> Iterator[dict[str, float]]:
    """Compile a model of each size."""
    for size in megabytes:
        with tempfile.TemporaryDirectory() as name:
            model = make_model(Path(name), size)
            command = [sys.executable, "-P", "-c", PROBE, str(model), f"{name}/out.onnx"]
            start = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds = time.perf_counter() - start
            stored = model.with_suffix(".data").stat().st_size
            yield {"stored": stored, "seconds": seconds, **json.loads(done.stdout)}


def main(
    megabytes: Annotated[list[int] | None, typer.Argument(help="Sizes of the weights.")] = None,
) -> None:
    """Print the table; exit with 1 if the largest model misses a limit."""
    table = Table("weights", "seconds", "s per GB", "peak memory", "artifact", "bound", box=None)
    worst = None
    for row in measure(megabytes or [100, 300, 600, 1200]):
        worst = row
        table.add_row(
            f"{row['stored'] / 1e6:.0f} MB",
            f"{row['seconds']:.1f}",
            f"{row['seconds'] / row['stored'] * 1e9:.1f}",
            f"{row['peak'] / 1e6:.0f} MB",
            f"{row['bytes'] / 1e6:.2f} MB",
            f"{row['stored'] / 32 / TILES / 1e6:.2f} MB + scales and graph",
        )
    Console(width=110).print(table)
    if worst is None or worst["seconds"] > SECONDS or worst["peak"] > MEMORY:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
