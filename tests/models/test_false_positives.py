"""No layer of a real dense model may be taken for a tile."""

import re
from importlib import metadata
from pathlib import Path

import pytest
from helpers.missing import report_missing

from tbn_compile import compile_model, inspect_model

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
PACKAGES = re.findall(r"^([\w-]+)==", REQUIREMENTS.read_text(), re.MULTILINE)
REASONS = (
    "magnitudes differ: ",
    "weights have no common magnitude",
    "both operands are computed",
    "ConvTranspose is not lowered",
    "LSTM is not lowered",
)


def model_files():
    """The .onnx files of the installed packages; a package that is not there yields its name."""
    for package in PACKAGES:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            yield pytest.param(package, id=f"{package} is missing")
            continue
        for file in files:
            if file.suffix == ".onnx":
                yield pytest.param(Path(str(file.locate())), id=file.name)


@pytest.mark.parametrize("model", list(model_files()))
def test_every_layer_is_left_alone_with_a_reason(model, tmp_path):
    if isinstance(model, str):
        report_missing(f"{model} is not installed; pip install --no-deps -r {REQUIREMENTS.name}")
    report = inspect_model(model)
    assert report.layers
    assert not report.lowered
    assert all(layer.reason.startswith(REASONS) for layer in report.layers)
    written = compile_model(model, output=tmp_path / "out.onnx")
    assert not written.lowered
