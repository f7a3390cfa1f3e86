"""The trained networks that are shipped: compiled, they are as accurate as in PyTorch."""

import json

import measure
import pytest
import results
from datasets.solids import clouds

EXAMPLES = results.HERE.parent
MLP, MIXER, POINTNET = (
    results.LOGS / name / "p4" / "seed0" for name in ("mlp", "mixer", "pointnet_classification")
)


@pytest.mark.usefixtures("installed_data")
@pytest.mark.parametrize("target", ["ort", "llvm"])
def test_the_perceptron_is_as_accurate_as_its_log_says(target: str) -> None:
    result = measure.measure(MLP, target)
    assert result.samples == 10_000
    logged = json.loads((MLP / "summary.json").read_text())["metrics"]["accuracy"]
    assert result.metrics["accuracy"] == pytest.approx(logged, abs=2e-4)


@pytest.mark.usefixtures("installed_data")
@pytest.mark.parametrize("target", ["c", "microbit"])
def test_the_perceptron_is_as_accurate_in_c(target: str) -> None:
    result = measure.measure(MLP, target, samples=1_000)
    assert result.metrics["accuracy"] > 0.85
    assert result.metrics == pytest.approx(result.expected, abs=2e-3)


@pytest.mark.usefixtures("installed_data")
@pytest.mark.parametrize("target", ["ort", "llvm"])
def test_the_mixer_is_as_accurate_as_in_onnx_runtime(target: str) -> None:
    result = measure.measure(MIXER, target, samples=100)
    assert result.metrics["accuracy"] > 0.85
    assert result.metrics == pytest.approx(result.expected, abs=1e-6)


@pytest.mark.parametrize("target", ["ort", "llvm"])
def test_pointnet_is_as_accurate_as_in_onnx_runtime(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clouds, "TRAINING_CLOUDS", 12)  # one of each class: none is learned from
    result = measure.measure(POINTNET, target, samples=100)
    assert result.metrics["accuracy"] > 0.95
    assert result.metrics == pytest.approx(result.expected, abs=1e-6)


def test_models_of_the_examples_stay_under_two_megabytes() -> None:
    shipped = [*(EXAMPLES / "fashion_mnist").glob("*.onnx")]
    shipped += [run / "model.tbn.onnx" for run in (MLP, MIXER, POINTNET)]
    assert sum(path.stat().st_size for path in shipped) < 2_000_000
