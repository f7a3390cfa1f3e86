"""A 1.2 GB model with external data: what memory and bytes it takes."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "compile_scale.py"


def benchmark():
    spec = importlib.util.spec_from_file_location("compile_scale", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "megabytes", [pytest.param(40), pytest.param(1200, marks=pytest.mark.slow)]
)
def test_memory_and_output_are_bounded(megabytes):
    scale = benchmark()
    figures = scale.measure(megabytes)
    assert figures["lowered"] == scale.LAYERS
    assert figures["peak"] < 1.5e9
    assert figures["bytes"] < figures["bound"] + 500 * scale.LAYERS
