"""Programs that several tests look at, compiled once."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "fashion_mnist"


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """The example models and one of each small architecture, by name."""
    from helpers.architectures import ARCHITECTURES, export_architecture

    folder = tmp_path_factory.mktemp("models")
    made = {name: export_architecture(name, folder) for name in ARCHITECTURES}
    return made | {name: EXAMPLES / f"{name}.onnx" for name in ("mlp", "cnn")}


@pytest.fixture(scope="session")
def programs(models):
    """Each of `models` compiled for a Cortex-M4, by name."""
    from helpers.programs import compile_for

    return {name: compile_for(path, "cortex-m4") for name, path in models.items()}
