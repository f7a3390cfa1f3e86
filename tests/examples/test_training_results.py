"""What the recipes' runs come to: compiled networks are measured, and logs become a page."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib as mpl
import measure
import pytest
import results
import torch
import train
import typer
from datasets.data import Data, Samples
from logged import LogError, read_logs
from recipe import Part, Recipe
from torch import nn

SAMPLES = 40


RECIPE = Recipe(
    name="noise", title="Noise", task="classification", dataset="noise", epochs=1,
    batch_size=8, network=Part(name="mlp", hidden=32), optimiser=Part(name="Adam"),
    min_size=1_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Data]:
    """The run of a network that is right on every sample: its own classes are the targets."""
    torch.manual_seed(3)
    network = train.build_network(RECIPE, tiles=4).eval()
    inputs = torch.randn(SAMPLES, 1, 28, 28)
    with torch.no_grad():
        classes = network(inputs).argmax(1)
    assert len(classes.unique()) > 3
    train_samples = Samples(inputs, torch.arange(SAMPLES) % 10)  # has all classes
    data = Data(train_samples, Samples(inputs, classes), nn.Identity(), nn.Identity())
    folder = tmp_path_factory.mktemp("exported")
    report = train.write_model(network, data, folder)
    summary = {"recipe": "noise", "epochs": 1, "metrics": {"accuracy": 1.0}}
    summary.update(train.describe(report))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder, data


@pytest.fixture
def finished(exported: tuple[Path, Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, data = exported
    monkeypatch.setattr(measure, "load_recipe", lambda name: RECIPE)
    monkeypatch.setattr(measure, "load_data", lambda name: data)
    return Path(shutil.copytree(folder, tmp_path / "seed0"))


def artifacts(run: Path) -> dict[str, Any]:
    return json.loads((run / "artifacts.json").read_text())


@pytest.mark.parametrize("target", ["ort", "llvm", "c", "mps2-an386"])
def test_a_compiled_network_is_as_good_as_before(
    finished: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    measure.main([finished], target)
    (artifact,) = artifacts(finished).values()
    assert artifact["metrics"] == artifact["expected"] == {"accuracy": 1.0}
    assert artifact["samples"] == SAMPLES
    assert artifact["artifact_bytes"] > 784 * 32 / 4 / 8
    assert f"{target}: accuracy 1.0000 (+0.0000 by compiling)" in capsys.readouterr().out


def test_a_board_tells_what_the_program_takes(finished: Path) -> None:
    measure.main([finished], "mps2-an386", samples=1)
    board = artifacts(finished)["mps2-an386"]["board"]
    assert 784 * 32 / 4 / 8 < board["flash_bytes"] < 4 * 784 * 32
    assert board["ram_bytes"] > 4 * 784
    assert 0 < board["stack_bytes"] < 4_096
    assert 784 * 32 / 4 / 4 < board["instructions"] < 784 * 32


def test_another_network_is_noticed(finished: Path) -> None:
    network = train.build_network(RECIPE, tiles=4).eval()
    train.write_model(network, measure.load_data("noise"), finished)
    measure.main([finished], "ort")
    assert artifacts(finished)["ort"]["metrics"]["accuracy"] < 0.6
    assert artifacts(finished)["ort"]["expected"]["accuracy"] == 1.0


def test_the_small_file_alone_is_enough(finished: Path) -> None:
    (finished / "model.onnx").unlink()
    measure.main([finished], "llvm")
    assert artifacts(finished)["llvm"]["metrics"]["accuracy"] == 1.0


def test_other_targets_stay_as_they_are(finished: Path) -> None:
    (finished / "artifacts.json").write_text(json.dumps({"llvm": "as it is", "ort": "old"}))
    measure.main([finished], "ort", samples=SAMPLES // 2)
    assert artifacts(finished)["llvm"] == "as it is"
    assert artifacts(finished)["ort"]["samples"] == SAMPLES // 2
    assert artifacts(finished)["ort"]["expected"] == {"accuracy": 1.0}


def test_a_run_that_fails_stops_no_other(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        measure.main([tmp_path / "none", finished], "ort")
    captured = capsys.readouterr()
    assert "none: ort: no summary.json" in captured.err
    assert "accuracy 1.0000" in captured.out


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("summary.json", "{", "Invalid JSON"),
        ("summary.json", '{"recipe": "noise"}', "epochs: Field required"),
        ("artifacts.json", "[]", "Input should be an object"),
    ],
)
def test_a_broken_file_of_a_run_is_named(
    finished: Path, file: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / file).write_text(text)
    with pytest.raises(typer.Exit):
        measure.main([finished], "ort")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{finished}: ort: {finished / file}: ")
    assert message in line
    assert (finished / file).read_text() == text


def log(
    folder: Path, seed: int = 0, artifact: dict[str, Any] | None = None, **figures: Any
) -> None:
    """Write a run's logs; `figures` are metrics, or replace what all runs have in common."""
    metrics = {key: figures.pop(key) for key in ("accuracy", "mse", "mae") if key in figures}
    summary = {
        "recipe": folder.parent.name, "epochs": 2, "metrics": metrics, "weights": 1_000,
        "bits_per_weight": 32.0, "original_bytes": 4_000, "stored_bytes": 4_000,
        "dense_multiply_adds": 80_000, "multiply_adds": 80_000, **figures,
    }  # fmt: skip
    run = folder / f"seed{seed}"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(summary))
    values = ",".join(map(str, metrics.values()))
    history = f"epoch,{','.join(metrics)}\n1,{values}\n2,{values}\n"
    (run / "metrics.csv").write_text(history)
    if artifact is not None:
        (run / "artifacts.json").write_text(json.dumps(artifact))


TILED = {"bits_per_weight": 0.258, "stored_bytes": 40, "multiply_adds": 20_000}


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    compiled = {
        "ort": {
            "metrics": {"accuracy": 0.9204}, "expected": {"accuracy": 0.92},
            "samples": 10_000, "artifact_bytes": 9_262, "board": None,
        },
        "microbit": {
            "metrics": {"accuracy": 0.92}, "expected": {"accuracy": 0.92},
            "samples": 500, "artifact_bytes": 61_440,
            "board": {
                "flash_bytes": 8_436, "ram_bytes": 4_200, "stack_bytes": 300,
                "instructions": 724_770,
            },
        },
    }  # fmt: skip
    log(folder / "resnet18" / "float", accuracy=0.94)
    log(folder / "resnet18" / "p4", accuracy=0.92, artifact=compiled, **TILED)
    log(folder / "resnet18" / "p4", seed=1, accuracy=0.94, **TILED)
    log(folder / "vit" / "float", accuracy=0.94)
    log(folder / "vit" / "p4", accuracy=0.9299, **TILED)
    log(folder / "forecast_load" / "float", mae=0.3, mse=0.2)
    log(folder / "forecast_load" / "p4", mae=0.31, mse=0.208, **TILED)
    return folder


def rows(page: str, name: str) -> list[list[str]]:
    """Cells of the rows, over all tables, whose first one is `name`."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
    return [line.strip("| ").split(" | ") for line in lines]


def test_the_page_says_what_the_logs_say(logs: Path) -> None:
    page = results.render(read_logs(logs))
    overview, variants, compiled, board = rows(page, "ResNet-18")
    assert overview[2:] == ["94.00", "93.00 ± 1.41", "1.00 points", "1.0 points: met", "100×", "4×"]
    assert variants[1:] == [
        "float", "94.00", "–", "32", "4.0 kB", "1×", "80.0 k", "1×", "2", "1"
    ]  # fmt: skip
    assert compiled[1:] == [
        "ONNX Runtime",
        "10,000",
        "accuracy, %",
        "92.00",
        "92.04",
        "9.3 kB",
        "–",
    ]
    assert board[1:] == [
        "p = 4", "microbit", "500", "accuracy, %", "92.00", "92.00", "8.4 kB", "4.5 kB", "724.8 k"
    ]  # fmt: skip
    assert "by 0.04 points at most" in page
    assert "|  | p = 4 | 93.00 ± 1.41 | 1.00 points | 0.258 | 40.0 B | 100× | 20.0 k | 4×" in page
    assert "|  | p = 8 | – | – | – |" in page


def test_goals_are_met_or_missed(logs: Path) -> None:
    page = results.render(read_logs(logs))
    assert rows(page, "ViT")[0][4:6] == ["1.01 points", "1.0 points: **missed**"]
    title = read_logs(logs)[0].recipe.title
    assert rows(page, title)[0][2:6] == ["0.2000", "0.2080", "4.00 %", "5.0 %: met"]


def test_a_network_without_float_is_compared_with_nothing(tmp_path: Path) -> None:
    log(tmp_path / "mixer" / "p4", accuracy=0.9, **TILED)
    page = results.render(read_logs(tmp_path))
    assert rows(page, "MLP-Mixer")[0][2:6] == ["–", "90.00", "–", "1.5 points"]


def test_without_logs_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="logs: no RECIPE/VARIANT/seedN of a finished run"):
        results.main(tmp_path / "logs", tmp_path)
    assert not list(tmp_path.iterdir())


def test_folders_of_runs_end_in_their_seed(logs: Path) -> None:
    run = logs / "vit" / "p4" / "seed0"
    run.rename(run.with_name("seed0-old"))
    with pytest.raises(LogError, match="seed0-old: no folder of a run"):
        read_logs(logs)


def test_the_same_logs_give_the_same_plots(logs: Path, tmp_path: Path) -> None:
    plots = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        results.main(logs, tmp_path / name)
        plots.append({p.name: p.read_bytes() for p in (tmp_path / name / "results").iterdir()})
    assert plots[0] == plots[1]
    assert plots[0].keys() == {"accuracy.svg", "history.svg"}
    assert b"in the paper, on CIFAR-10" in plots[0]["accuracy.svg"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "summary.json",
            '{"recipe": "vit", "epochs": "many"}',
            "epochs: Input should be a valid integer",
        ),
        ("summary.json", "{", "Invalid JSON"),
        ("artifacts.json", '{"ort": {}}', r"ort\.metrics: Field required"),
        ("metrics.csv", "epoch,accuracy\n1\n", "float"),
    ],
)
def test_broken_logs_are_named(logs: Path, file: str, text: str, message: str) -> None:
    path = logs / "vit" / "p4" / "seed0" / file
    path.write_text(text)
    with pytest.raises(LogError, match=rf"{re.escape(str(path))}: .*{message}"):
        read_logs(logs)


def test_the_committed_page_is_current(tmp_path: Path) -> None:
    results.main(results.LOGS, tmp_path)
    committed = results.DOCS / "results.md"
    hint = "run `python examples/training/results.py`"
    assert (tmp_path / "results.md").read_text() == committed.read_text(), hint
    for name in ("accuracy.svg", "history.svg"):
        plot = (results.DOCS / "results" / name).read_text()
        if f"Matplotlib v{mpl.__version__}," not in plot:
            pytest.skip(f"{name} was drawn by another release of matplotlib")
        assert (tmp_path / "results" / name).read_text() == plot, hint
