"""A recipe: one TOML file that says what is trained, on what, and how."""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

T = TypeVar("T")
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

    def build(self, kinds: Mapping[str, Callable[..., T]], *inputs: object) -> T:
        """Call what has this name in `kinds` with `inputs` and the arguments.

        Raises:
            RecipeError: nothing has this name, or it does not take the arguments.
        """
        try:
            return find(kinds, self.name)(*inputs, **self.arguments)
        except TypeError as error:
            raise RecipeError(f"{self.name}: {error}") from error


class Recipe(BaseModel):
    """How one network is trained, whatever its weights and the seed.

    Attributes:
        name: the file's name without its suffix.
        title: the network as the tables name it.
        dataset: a key of `datasets.DATASETS`.
        network: a key of `networks.NETWORKS` and its arguments.
        optimiser: a class of `torch.optim` and its arguments.
        tiled_optimiser: in its place for tiled weights, which often learn best at another rate.
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
    tiled_optimiser: Part | None = None
    epochs: PositiveInt
    batch_size: PositiveInt
    warm_up: Annotated[float, Field(gt=0, lt=1)] = 0.05
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gradient_clip: PositiveFloat | None = None
    min_size: NonNegativeInt = 64_000


def find(kinds: Mapping[str, T], name: str) -> T:
    """What has this name in `kinds`.

    Raises:
        RecipeError: nothing has; the message lists the names there are.
    """
    if name not in kinds:
        raise RecipeError(f"no {name!r}; there are: {', '.join(sorted(kinds))}")
    return kinds[name]


def recipe_names() -> list[str]:
    """Every recipe there is."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Read recipes/NAME.toml.

    Raises:
        RecipeError: there is no such file, or a key of it is missing, unknown or wrong.
    """
    if name not in recipe_names():
        raise RecipeError(f"no recipe {name!r}; there are: {', '.join(recipe_names())}")
    path = FOLDER / f"{name}.toml"
    try:
        return Recipe.model_validate({**tomllib.loads(path.read_text("utf-8")), "name": name})
    except ValidationError as error:
        raise RecipeError(f"{path.name}: {first_problem(error)}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise RecipeError(f"{path.name}: {error}") from error


def first_problem(error: ValidationError) -> str:
    """One line: the key and what is wrong with it."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return ": ".join(filter(None, [where, first["msg"]]))
