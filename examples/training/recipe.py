"""A recipe: one TOML file that says what is trained, on what, and how."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

FOLDER = Path(__file__).parent / "recipes"
TaskName = Literal["classification", "segmentation", "forecasting"]


class RecipeError(ValueError):
    """There is no such recipe, or its file is wrong; the message says where."""


class Part(BaseModel):
    """Something that is built by name; all other keys are its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys beside the name."""
        return self.model_extra or {}


class Recipe(BaseModel):
    """How one network is trained; every variant and seed of it alike.

    Attributes:
        name: the file's name without its suffix.
        title: the network as the tables name it.
        dataset: a key of `datasets.DATASETS`.
        network: a key of `networks.NETWORKS` and its arguments.
        optimiser: a class of `torch.optim` and its arguments.
        epochs: passes over the training samples.
        batch_size: samples of one step, over all processes.
        warm_up: the part of all steps in which the learning rate rises; then it falls to zero
            along a cosine.
        label_smoothing: of the cross-entropy.
        gradient_clip: largest norm of the gradient, or None.
        min_size: weights with fewer elements (the paper's lambda) get one tile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    task: TaskName
    dataset: str
    network: Part
    optimiser: Part
    epochs: PositiveInt
    batch_size: PositiveInt
    warm_up: PositiveFloat = 0.05
    label_smoothing: float = 0.0
    gradient_clip: PositiveFloat | None = None
    min_size: int = 64_000


def recipe_names() -> list[str]:
    """Every recipe there is."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Read recipes/NAME.toml.

    Raises:
        RecipeError: there is no such file, or a key of it is missing, unknown or wrong.
    """
    path = FOLDER / f"{name}.toml"
    if name not in recipe_names():
        raise RecipeError(f"no recipe {name!r}; there are: {', '.join(recipe_names())}")
    try:
        return Recipe(name=name, **tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise RecipeError(f"{path.name}: {error}") from error
