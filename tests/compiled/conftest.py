"""A compiled model that several tests look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tbn_compile import compile_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "fashion_mnist"


@dataclass(frozen=True)
class Example:
    """A model and its artifact."""

    model: Path
    artifact: Path


@pytest.fixture(scope="session")
def example(tmp_path_factory) -> Example:
    """The example MLP, [batch, 784] → [batch, 10], compiled for this machine."""
    artifact = tmp_path_factory.mktemp("artifact") / "mlp.so"
    compile_model(EXAMPLES / "mlp.onnx", "llvm", artifact)
    return Example(EXAMPLES / "mlp.onnx", artifact)
