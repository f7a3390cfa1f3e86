"""The kernels' CUDA C++, and how it names element types."""

from __future__ import annotations

from pathlib import Path

CUDA_TYPES = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float"}

_FOLDER = Path(__file__).with_name("kernels")


def read_kernel(name: str) -> str:
    """The text of a file in `kernels/`; it may follow itself, because each guards its content."""
    return (_FOLDER / name).read_text(encoding="utf-8")
