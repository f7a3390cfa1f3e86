"""Small models, and two ways to run a tool: in a process of its own and in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

INPUTS, HIDDEN, OUTPUTS = 32, 16, 8


def _tiled(rng: np.random.Generator, rows: int, columns: int, tiles: int) -> Any:
    tile = rng.choice([-1.0, 1.0], rows * columns // tiles)
    return (np.resize(tile, (rows, columns)) * 0.25).astype(np.float32)


@pytest.fixture
def save_mlp(tmp_path: Path) -> Callable[..., Path]:
    """Write tiled(fc1) → Relu → tiled(fc2) → dense(fc3), with given names and seed."""

    def save(file: str = "model.onnx", first: str = "fc1", seed: int = 0, **options: Any) -> Path:
        rng = np.random.default_rng(seed)
        weights = {
            "W1": _tiled(rng, HIDDEN, INPUTS, tiles=4),
            "W2": _tiled(rng, HIDDEN, HIDDEN, tiles=2),
            "W3": rng.standard_normal((OUTPUTS, HIDDEN)).astype(np.float32),
        }
        nodes = [
            helper.make_node("Gemm", ["x", "W1"], ["a"], name=first, transB=1),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("Gemm", ["b", "W2"], ["c"], name="fc2", transB=1),
            helper.make_node("Gemm", ["c", "W3"], ["y"], name="fc3", transB=1),
        ]
        batch = options.get("batch", "batch")
        graph = helper.make_graph(
            nodes,
            "mlp",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, INPUTS])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, OUTPUTS])],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        path = tmp_path / file
        onnx.save(
            model,
            path,
            save_as_external_data=options.get("external", False),
            location=f"{file}.data",
            size_threshold=0,
        )
        return path

    return save


@pytest.fixture
def mlp(save_mlp: Callable[..., Path]) -> Path:
    """The path of such a model."""
    return save_mlp()


@pytest.fixture
def save_text(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a model given as ONNX text: `g (float[N] x) => (float[N] y) { ... }`."""

    def save(file: str, text: str) -> Path:
        model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {text}')
        onnx.save(model, tmp_path / file)
        return tmp_path / file

    return save


@pytest.fixture
def flip_bit() -> Callable[..., None]:
    """Change one sign of the tile of a named node in a compiled file."""

    def flip(artifact: Path, node: str, bit: int = 0) -> None:
        model = onnx.load(artifact)
        name = next(n.input[1] for n in model.graph.node if n.name == node)
        tensor = next(t for t in model.graph.initializer if t.name == name)
        bits = numpy_helper.to_array(tensor).copy()
        bits[bit // 8] ^= 1 << bit % 8
        tensor.CopyFrom(numpy_helper.from_array(bits, name))
        onnx.save(model, artifact)

    return flip


@pytest.fixture
def run_tool(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `main` of a tool in a process of its own."""

    def run(tool: str, *arguments: object, encoding: str = "utf-8", **environment: str) -> Any:
        code = f"from tbn_compile.command_line.{tool} import main; main()"
        inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            encoding=encoding,
            env={**inherited, "PYTHONIOENCODING": encoding, **environment},
            timeout=120,
        )

    return run


@pytest.fixture
def invoke() -> Callable[..., Any]:
    """Run a tool in this process."""

    def run(tool: str, *arguments: object) -> Any:
        app = import_module(f"tbn_compile.command_line.{tool}").app
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
