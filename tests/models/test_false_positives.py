"""Real networks with dense weights have no tiles, and every layer left alone has its reason."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
from tbn_compile import inspect_model

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PACKAGES = {
    line.split("==")[0]
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    if "==" in line
}
LAYERS = {"magika": 3, "rapidocr-onnxruntime": 169, "silero-vad": 62}


def _models(package: str) -> list[Path]:
    try:
        found = files(package) or []
    except PackageNotFoundError:
        message = f"{package} is missing: pip install --no-deps -r {REQUIREMENTS.name}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return [Path(str(file.locate())) for file in found if file.suffix == ".onnx"]


def test_every_required_package_is_covered():
    assert PACKAGES == set(LAYERS)


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_dense_networks_have_no_tiles(package):
    reports = [inspect_model(path) for path in _models(package)]
    layers = [layer for report in reports for layer in report.layers]
    assert len(layers) == LAYERS[package]
    assert [layer.name for layer in layers if layer.status == "lowered"] == []
    assert all(layer.reason for layer in layers)
