"""Train one variant of a recipe, export it, and write down how good it is.

    python examples/training/train.py resnet18 --tiles 4
    torchrun --nproc-per-node 2 examples/training/train.py resnet18 --tiles 4

A run that was cut off goes on from its last checkpoint when it is started again.
"""

import os
import sys
import warnings
import zipfile
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as lightning
import torch
import typer
from datasets import DATASETS
from datasets.data import Data, Samples
from history import History
from logged import write_json
from networks import NETWORKS
from pytorch_lightning.callbacks import ModelCheckpoint
from recipe import Recipe, RecipeError, find, load_recipe
from task import EVALUATION_BATCH, Learner, score
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from tbn_compile import ModelReport, TbnError, compile_model
from tbn_compile.training import export, freeze, tile_model

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


class _Batches(Dataset[Samples]):
    """Samples that are taken a batch at a time."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples.inputs)

    def __getitems__(self, indices: list[int]) -> Samples:
        return Samples(self.samples.inputs[indices], self.samples.targets[indices])


def build_network(recipe: Recipe, tiles: int | None) -> nn.Module:
    """The recipe's network, new; tiled unless `tiles` is None."""
    network = recipe.network.build(NETWORKS)
    if tiles is not None:
        tile_model(network, p=tiles, min_size=recipe.min_size)
    return network


def loader(samples: Samples, batch_size: int, seed: int | None = None) -> DataLoader[Samples]:
    """Batches of samples, of which each process takes its part; shuffled if there is a seed."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    learning = seed is not None
    batches = _Batches(samples)
    order: DistributedSampler[int] = DistributedSampler(
        batches, processes, rank, learning, seed or 0, drop_last=learning
    )
    parts = BatchSampler(order, batch_size // processes, drop_last=learning)
    return DataLoader(batches, batch_sampler=parts, collate_fn=lambda batch: batch)


def _checkpoints(folder: Path, epochs: int) -> ModelCheckpoint:
    """One each epoch or, of long runs, each tenth of them; it takes the place of the last."""
    every = max(1, epochs // 10)
    return ModelCheckpoint(
        folder, filename="last", every_n_epochs=every, enable_version_counter=False
    )


def train(learner: Learner, folder: Path, seed: int, precision: Precision) -> None:
    """Fit to the last epoch of the recipe, from the checkpoint in `folder` if there is one.

    A run that is resumed draws augmentation and dropout from the start of the seed again.

    Raises:
        RecipeError: the checkpoint is cut off, or is one of another recipe or number of epochs.
    """
    checkpoint = folder / "last.ckpt"
    if checkpoint.exists() and not zipfile.is_zipfile(checkpoint):
        raise RecipeError(f"{checkpoint} is cut off; remove it to begin anew")
    trainer = lightning.Trainer(
        precision=precision,
        max_epochs=learner.recipe.epochs,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        gradient_clip_val=learner.recipe.gradient_clip,
        logger=False,
        callbacks=[History(folder / "metrics.csv"), _checkpoints(folder, learner.recipe.epochs)],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* is not empty")
        trainer.fit(
            learner,
            loader(learner.data.train, learner.recipe.batch_size, seed),
            loader(learner.data.test, EVALUATION_BATCH),
            ckpt_path=checkpoint if checkpoint.exists() else None,
        )
    if torch.distributed.is_initialized():  # what follows is one process's work
        torch.distributed.destroy_process_group()


def write_model(network: nn.Module, data: Data, folder: Path) -> ModelReport:
    """Export to `folder`: model.onnx with dense weights, model.tbn.onnx with their tiles."""
    example = data.prepare(data.test.inputs[:1])
    export(freeze(network), folder / "model.onnx", example)
    return compile_model(folder / "model.onnx", "ort", folder / "model.tbn.onnx")


def describe(report: ModelReport) -> dict[str, float]:
    """Sizes and work of an exported network; the bits of a tile count, and 32 of a float weight.

    Scales count as stored bytes alone, as in the paper's bits per weight.
    """
    constant = [layer for layer in report.layers if layer.original_bytes]
    weights = sum(prod(layer.shape) for layer in constant)
    bits = sum(layer.tile_length or 32 * prod(layer.shape) for layer in constant)
    return {
        "weights": weights,
        "bits_per_weight": bits / weights,
        **report.to_dict()["totals"],
    }


def main(
    name: Annotated[
        str, typer.Argument(metavar="RECIPE", help="a file of recipes/, without .toml")
    ],
    tiles: Annotated[int | None, typer.Option(min=1, help="p; without it, float weights")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="of the weights, the order and the augmentation")
    ] = 0,
    runs: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs"),
    epochs: Annotated[int | None, typer.Option(min=1, help="in place of the recipe's")] = None,
    precision: Annotated[Precision, typer.Option(help="as Lightning names it")] = "32-true",
) -> None:
    """Train RECIPE and write metrics, checkpoint, ONNX files and summary to its folder in RUNS."""
    recipe = load_recipe(name)
    if epochs is not None:
        recipe = recipe.model_copy(update={"epochs": epochs})
    lightning.seed_everything(seed, verbose=False)
    data = find(DATASETS, recipe.dataset)()
    learner = Learner(build_network(recipe, tiles), recipe, data)
    variant = "float" if tiles is None else f"p{tiles}"
    folder = runs / recipe.name / variant / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    train(learner, folder, seed, precision)
    if os.environ.get("RANK", "0") == "0":
        finish(learner, folder, {"recipe": name, "variant": variant, "seed": seed})


def finish(learner: Learner, folder: Path, run: dict[str, Any]) -> None:
    """Measure the trained network and write it and its summary."""
    device = learner.trainer.strategy.root_device
    network = learner.network.eval().to(device)
    metrics = score(lambda inputs: network(inputs.to(device)), learner.recipe, learner.data)
    summary = {
        **run,
        "epochs": learner.recipe.epochs,
        "metrics": metrics,
        **describe(write_model(network.cpu(), learner.data, folder)),
    }
    write_json(folder / "summary.json", summary)
    print(f"{folder}: {metrics}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except (RecipeError, TbnError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")
