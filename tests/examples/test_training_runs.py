"""Runs of recipes: what they write, resume and refuse, in one process and in two."""

import json
import runpy
import socket
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
from task import OPTIMISERS, Learner, score
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
        name="blobs", title="Blobs", task="classification", dataset="blobs", epochs=3,
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
        with torch.device("meta"):  # sizes without numbers
            network = train.build_network(recipe, tiles=16)
        for part in filter(None, [recipe.optimiser, recipe.tiled_optimiser]):
            part.build(OPTIMISERS, network.parameters())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(name="mpl"), "no 'mpl'; there are: convmixer, forecaster, mixer, mlp, "),
        (Part(name="mlp", depth=3), "mlp: .*unexpected keyword argument 'depth'"),
    ],
)
def test_a_network_that_is_not_there_is_told(recipe: Recipe, part: Part, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        train.build_network(recipe.model_copy(update={"network": part}), tiles=None)


def test_tiled_weights_have_their_optimiser(recipe: Recipe, blobs: Data) -> None:
    both = recipe.model_copy(update={"tiled_optimiser": Part(name="SGD", lr=0.1)})
    names = [
        Learner(train.build_network(both, tiles), both, blobs).optimiser.name for tiles in (None, 4)
    ]
    assert names == ["AdamW", "SGD"]


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
    epochs = []
    monkeypatch.setattr(
        Learner, "on_train_epoch_start", lambda self: epochs.append(self.current_epoch)
    )
    resumed = run(recipe, blobs, tmp_path / "cut")

    assert epochs == [2]

    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]
    assert len(metrics[1].splitlines()) == 1 + recipe.epochs
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name])


def test_a_finished_run_stays_as_it_is(recipe: Recipe, blobs: Data, tmp_path: Path) -> None:
    short = recipe.model_copy(update={"epochs": 1})
    first = run(short, blobs, tmp_path)
    history = (tmp_path / "metrics.csv").read_text()
    again = run(short, blobs, tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == history
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name])


def test_a_checkpoint_of_another_recipe_is_refused(
    recipe: Recipe, blobs: Data, tmp_path: Path
) -> None:
    run(recipe.model_copy(update={"epochs": 1}), blobs, tmp_path)
    with pytest.raises(RecipeError, match="another recipe or number of epochs"):
        run(recipe, blobs, tmp_path)


def test_a_checkpoint_that_is_cut_off_is_refused(
    recipe: Recipe, blobs: Data, tmp_path: Path
) -> None:
    run(recipe.model_copy(update={"epochs": 1}), blobs, tmp_path)
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(RecipeError, match=r"last\.ckpt is cut off; remove it to begin anew"):
        run(recipe, blobs, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epochs", "0", "epochs: Input should be greater than 0"),
        ("epoch", "3", "epoch: Extra inputs are not permitted"),
        ("task", "'sorting'", "task: Input should be 'classification'"),
        ("warm_up", "1.5", "warm_up: Input should be less than 1"),
        ("network", "{hidden = 3}", "network.name: Field required"),
        ("epochs", "[", "Invalid"),
    ],
)
def test_a_wrong_file_is_told(
    key: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {
        "title": "'Wrong'", "task": "'classification'", "dataset": "'blobs'", "epochs": "4",
        "batch_size": "32", "network": "{name = 'mlp'}", "optimiser": "{name = 'SGD'}",
    }  # fmt: skip
    lines = [f"{name} = {text}" for name, text in {**right, key: value}.items()]
    (tmp_path / "wrong.toml").write_text("\n".join(lines))
    monkeypatch.setattr("recipe.FOLDER", tmp_path)
    with pytest.raises(RecipeError, match=f"^wrong.toml: {message}") as told:
        load_recipe("wrong")
    assert "\n" not in str(told.value)


def missing() -> Data:
    raise FileNotFoundError("images are missing; install them")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet"], "train.py: no recipe 'resnet'; there are: convmixer, "),
        (["mlp", "--tiles", "3"], "train.py: layer '1': p = 3 does not divide the 100352 elements"),
        (["vit"], "train.py: images are missing; install them"),
    ],
)
def test_what_is_wrong_is_told_before_a_run_begins(
    arguments: list[str], message: str, blobs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(train.DATASETS, "plain_fashion_mnist", lambda: blobs)
    monkeypatch.setitem(train.DATASETS, "fashion_mnist", missing)
    monkeypatch.setattr("sys.argv", ["train.py", *arguments, "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("installed_data")
@pytest.mark.parametrize("hosts", [1, 2])
def test_two_processes_train_one_network(hosts: int, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nnodes={hosts}",
        f"--nproc-per-node={2 // hosts}", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=localhost:{free_port()}", SCRIPT,
        "mlp", "--tiles", "4", "--epochs", "1", "--runs", tmp_path,
    ]  # fmt: skip
    launched = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(hosts)
    ]
    for process in launched:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    summary = json.loads((tmp_path / "mlp/p4/seed0/summary.json").read_text())
    assert summary["metrics"]["accuracy"] > 0.75


def free_port() -> int:
    with socket.socket() as unbound:
        unbound.bind(("localhost", 0))
        return unbound.getsockname()[1]
