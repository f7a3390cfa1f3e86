"""Train a network on Fashion-MNIST and export it; README.md gives the recipe and its results."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import dataset
import models
import numpy as np
import torch
import typer
from torch import Tensor, nn

from tbn_compile.training import export, freeze

SEED = 1
THREADS = 1
SAMPLES = 16


class Recipe(NamedTuple):
    """How to train one network: Adam, its learning rate falling to zero along a cosine."""

    build: Callable[[models.Layers], nn.Module]
    image_shape: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float


RECIPES = {
    "mlp": Recipe(models.mlp, (784,), epochs=40, batch_size=256, learning_rate=1e-3),
    "cnn": Recipe(models.cnn, (1, 28, 28), epochs=15, batch_size=128, learning_rate=1e-2),
}


def load(split: str, recipe: Recipe) -> tuple[Tensor, Tensor]:
    images, labels = (torch.from_numpy(array) for array in dataset.load(split))
    return images.reshape(-1, *recipe.image_shape), labels


def train(model: nn.Module, recipe: Recipe) -> None:
    images, labels = load("train", recipe)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    model.train()
    for epoch in range(recipe.epochs):
        total = 0.0
        for batch in torch.randperm(len(images)).split(recipe.batch_size):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        print(f"epoch {epoch + 1} of {recipe.epochs}: loss {total / len(images):.4f}", flush=True)


@torch.no_grad()
def accuracy(model: nn.Module, recipe: Recipe) -> float:
    images, labels = load("test", recipe)
    classes = torch.cat([model(batch).argmax(1) for batch in images.split(1_000)])
    return (classes == labels).double().mean().item()


def write(name: str, model: nn.Module, folder: Path) -> None:
    example = torch.zeros(1, *RECIPES[name].image_shape)
    export(freeze(model), folder / f"{name}.onnx", example, output_names=["logits"])
    if name == "mlp":
        export(model, folder / "mlp_training_graph.onnx", example, output_names=["logits"])
    images, labels = dataset.load("test")
    np.savez(folder / "test_images.npz", images=images[:SAMPLES], labels=labels[:SAMPLES])


def main(
    network: Annotated[Literal["mlp", "cnn"], typer.Argument()],
    folder: Annotated[Path, typer.Option(help="where to write the files")] = Path(__file__).parent,
    epochs: Annotated[int | None, typer.Option(help="in place of the recipe's")] = None,
    full_precision: Annotated[
        bool, typer.Option("--float", help="train the float baseline; writes no files")
    ] = False,
) -> None:
    """Train NETWORK with its recipe and write its ONNX files."""
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    recipe = RECIPES[network]
    if epochs is not None:
        recipe = recipe._replace(epochs=epochs)
    model = recipe.build(models.FLOAT if full_precision else models.TILED)
    train(model, recipe)
    model.eval()
    print(f"{network}: test accuracy {accuracy(model, recipe):.2%}")
    if not full_precision:
        write(network, model, folder)


if __name__ == "__main__":
    typer.run(main)
