"""Compile Tiled Bit Networks (Gorbett, Shirazi and Ray, CIKM 2024) from ONNX.

Four verbs, each also a command-line tool: `compile_model`, `inspect_model`, `validate_model` and
`benchmark_model`. `load` runs what targets llvm and cuda write; `get_library_path` finds the
kernels for ONNX Runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tbn_compile.errors import ModelError, TbnError, TileError, UsageError

if TYPE_CHECKING:
    from tbn_compile.benchmarking import BenchmarkReport, benchmark_model
    from tbn_compile.compiler import CompileOptions, compile_model, inspect_model
    from tbn_compile.detection import NotTiled, detect_tile
    from tbn_compile.library import get_library_path
    from tbn_compile.reports import LayerReport, ModelReport
    from tbn_compile.targets import target_names
    from tbn_compile.targets.compiled.loader import CompiledModel, load
    from tbn_compile.tile import ReusePlan, TiledBinaryWeight
    from tbn_compile.validation import ValidationReport, validate_model

_HOME = {
    "BenchmarkReport": "benchmarking",
    "CompileOptions": "compiler",
    "CompiledModel": "targets.compiled.loader",
    "LayerReport": "reports",
    "ModelReport": "reports",
    "NotTiled": "detection",
    "ReusePlan": "tile",
    "TiledBinaryWeight": "tile",
    "ValidationReport": "validation",
    "benchmark_model": "benchmarking",
    "compile_model": "compiler",
    "detect_tile": "detection",
    "get_library_path": "library",
    "inspect_model": "compiler",
    "load": "targets.compiled.loader",
    "target_names": "targets",
    "validate_model": "validation",
}

__version__ = "0.1.0"
__all__ = [
    "BenchmarkReport",
    "CompileOptions",
    "CompiledModel",
    "LayerReport",
    "ModelError",
    "ModelReport",
    "NotTiled",
    "ReusePlan",
    "TbnError",
    "TileError",
    "TiledBinaryWeight",
    "UsageError",
    "ValidationReport",
    "benchmark_model",
    "compile_model",
    "detect_tile",
    "get_library_path",
    "inspect_model",
    "load",
    "target_names",
    "validate_model",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: tools start quickly without the rest."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
