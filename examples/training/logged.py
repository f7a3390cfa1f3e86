"""What finished runs have logged, read back: recipe, variant, seed."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from recipe import Recipe, first_problem, load_recipe, recipe_names

from tbn_compile.files import staging_folder

T = TypeVar("T")
VARIANTS = {"float": "float", "p1": "p = 1", "p4": "p = 4", "p8": "p = 8", "p16": "p = 16"}
"""Titles by the names of folders."""


class LogError(ValueError):
    """A log cannot be read; the message names the file."""


class Summary(BaseModel):
    """What `train.py` writes at the end of a run; sizes in bytes, multiply-adds per inference."""

    recipe: str
    epochs: int
    metrics: dict[str, float]
    weights: int
    bits_per_weight: float
    original_bytes: int
    stored_bytes: int
    dense_multiply_adds: int
    multiply_adds: int


class Needs(BaseModel):
    """What a program takes on a board, beside start-up code; instructions of one inference."""

    flash_bytes: int
    ram_bytes: int
    stack_bytes: int
    instructions: int


class Artifact(BaseModel):
    """What `measure.py` writes of a compiled network.

    Attributes:
        metrics: of the artifact.
        expected: on the same samples before compiling.
        samples: how many.
        artifact_bytes: of the file that the compiler writes.
        board: None if it was no board that ran it.
    """

    metrics: dict[str, float]
    expected: dict[str, float]
    samples: int
    artifact_bytes: int
    board: Needs | None


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        summary: after the last epoch.
        artifacts: by target or board; empty if none was measured.
        history: for each epoch, its figures by name.
    """

    summary: Summary
    artifacts: dict[str, Artifact]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Variant:
    """The runs of one variant of a recipe, at least one, in the order of their seeds."""

    runs: tuple[Run, ...]

    @property
    def summary(self) -> Summary:
        """The first run's; sizes and work are the same in all."""
        return self.runs[0].summary

    def mean(self, metric: str) -> float:
        """Over the seeds."""
        return mean(self._values(metric))

    def deviation(self, metric: str) -> float:
        """The standard deviation over the seeds, of which there must be two or more."""
        return stdev(self._values(metric))

    def _values(self, metric: str) -> list[float]:
        return [run.summary.metrics[metric] for run in self.runs]


@dataclass(frozen=True)
class Network:
    """A recipe and those of its variants that were trained."""

    recipe: Recipe
    variants: dict[str, Variant]

    def artifacts_of(self, variant: str) -> dict[str, Artifact]:
        """By target or board, each of the first run of that variant that has it."""
        if variant not in self.variants:
            return {}
        return {
            target: artifact
            for run in reversed(self.variants[variant].runs)
            for target, artifact in run.artifacts.items()
        }

    def all_artifacts(self) -> Iterator[Artifact]:
        """Those of all variants, seeds and targets."""
        for variant in self.variants.values():
            for run in variant.runs:
                yield from run.artifacts.values()


def read_logs(folder: Path) -> list[Network]:
    """All networks with a finished run in `folder`/RECIPE/VARIANT/seedN.

    Raises:
        LogError: a file is not what a run writes.
    """
    networks = (
        Network(load_recipe(name), dict(_read_variants(folder / name))) for name in recipe_names()
    )
    return [network for network in networks if network.variants]


def _read_variants(folder: Path) -> Iterator[tuple[str, Variant]]:
    for name in VARIANTS:
        finished = [path.parent for path in (folder / name).glob("seed*/summary.json")]
        if finished:
            runs = (_read_run(run) for run in sorted(finished, key=_seed))
            yield name, Variant(tuple(runs))


def _seed(run: Path) -> int:
    number = run.name.removeprefix("seed")
    if not number.isdecimal():
        raise LogError(f"{run}: no folder of a run; its name must be seed and a number")
    return int(number)


def _read_run(folder: Path) -> Run:
    artifacts = folder / "artifacts.json"
    return Run(
        read_json(folder / "summary.json", Summary),
        read_json(artifacts, dict[str, Artifact]) if artifacts.exists() else {},
        _read_history(folder / "metrics.csv"),
    )


def read_json(path: Path, kind: type[T]) -> T:
    """The file's content as `kind`.

    Raises:
        LogError: it is something else.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise LogError(f"{path}: {first_problem(error)}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Put the file in place once it is whole, so that nobody reads a part of it."""
    with staging_folder(path) as staging:
        (staging / path.name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_history(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)
            ]
    except (OSError, TypeError, ValueError) as error:
        raise LogError(f"{path}: {error}") from error
