"""Runs of recipes: what they write, resume and refuse, in one process and in two."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import pytorch_lightning as lightning
import torch
import train
from datasets.data import Data, Samples
from recipe import Part, Recipe, RecipeError, load_recipe, recipe_names
from task import Learner, score
from torch import nn

from tbn_compile import get_library_path

SCRIPT = Path(train.__file__)
pytestmark = [  # what Lightning says of PyTorch's releases and of small machines
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"),
]


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        name="blobs", title="Blobs", task="classification", dataset="blobs", epochs=4,
        batch_size=32, network=Part(name="mlp", hidden=32), min_size=1_000,
        optimiser=Part(name="AdamW", lr=0.01),
    )  # fmt: skip


@pytest.fixture
def blobs() -> Data:
    """Noisy images [1, 28, 28] around one centre per class."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(10, 1, 28, 28, generator=generator)
    classes = torch.arange(10).repeat(32)
    noise = torch.randn(len(classes), 1, 28, 28, generator=generator)
    samples = Samples(centres[classes] + noise, classes)
    return Data(samples, samples, nn.Identity(), nn.Identity())


def run(recipe: Recipe, data: Data, folder: Path, **options: Any) -> Learner:
    folder.mkdir(parents=True, exist_ok=True)
    lightning.seed_everything(1, verbose=False)
    learner = Learner(train.build_network(recipe, tiles=4), recipe, data)
    train.train(learner, folder, seed=1, precision="32-true", **options)
    return learner


def test_every_recipe_is_complete() -> None:
    assert len(recipe_names()) == 12
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.dataset in train.DATASETS
        train.build_network(recipe, tiles=16)
        assert hasattr(torch.optim, recipe.optimiser.name)


def test_a_run_writes_its_files(recipe: Recipe, blobs: Data, tmp_path: Path) -> None:
    learner = run(recipe, blobs, tmp_path)
    train.finish(learner, tmp_path, {"recipe": "blobs", "variant": "p4", "seed": 1})

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["metrics"]["accuracy"] > 0.9
    assert summary["weights"] == 784 * 32 + 32 * 10
    bits = 784 * 32 / 4 + 32 * 10
    assert summary["bits_per_weight"] == pytest.approx(bits / summary["weights"])
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + recipe.epochs
    assert artifact_accuracy(tmp_path / "model.tbn.onnx", recipe, blobs) == pytest.approx(
        summary["metrics"]["accuracy"], abs=0.01
    )


def artifact_accuracy(path: Path, recipe: Recipe, data: Data) -> float:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(get_library_path()))
    session = onnxruntime.InferenceSession(path, options)

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])

    return score(predict, recipe, data)["accuracy"]


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    recipe: Recipe, blobs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(recipe, blobs, tmp_path / "whole")

    def power_cut(self: Learner) -> None:
        if self.current_epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "on_train_epoch_start", power_cut)
        with pytest.raises(SystemExit):
            run(recipe, blobs, tmp_path / "cut")
    resumed = run(recipe, blobs, tmp_path / "cut")

    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "cut")]
    assert metrics[0].splitlines()[:3] == metrics[1].splitlines()[:3]
    assert len(metrics[1].splitlines()) == 1 + recipe.epochs
    for name, tensor in whole.network.state_dict().items():
        assert tensor.shape == resumed.network.state_dict()[name].shape


def test_a_checkpoint_of_another_recipe_is_refused(
    recipe: Recipe, blobs: Data, tmp_path: Path
) -> None:
    run(recipe, blobs, tmp_path)
    with pytest.raises(RecipeError, match="another recipe or number of epochs"):
        run(recipe.model_copy(update={"epochs": 5}), blobs, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 0", "epochs"),
        ("epoch = 3", "epoch"),
        ("task = 'sorting'", "task"),
        ("[", "wrong.toml: Invalid"),
    ],
)
def test_a_wrong_file_is_told(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    monkeypatch.setattr("recipe.FOLDER", tmp_path)
    with pytest.raises(RecipeError, match=message):
        load_recipe("wrong")


def test_an_unknown_recipe_is_told_with_those_there_are() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "resnet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no recipe 'resnet'; there are: convmixer, " in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", SCRIPT]
    arguments = ["mlp", "--tiles", "4", "--epochs", "1", "--runs", tmp_path]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "mlp/p4/seed0/summary.json").read_text())
    assert summary["metrics"]["accuracy"] > 0.75
