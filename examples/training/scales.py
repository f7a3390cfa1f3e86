"""How the results of each kind of task read: metrics, and what falls behind by how much."""

from collections.abc import Callable
from typing import NamedTuple

from recipe import TaskName


class Scale(NamedTuple):
    """How a metric is shown: its value times `factor`, with so many decimals."""

    title: str
    factor: float
    decimals: int

    def show(self, value: float) -> str:
        """A value as text, without the unit that the title names."""
        return f"{self.factor * value:.{self.decimals}f}"


SCALES = {
    "accuracy": Scale("accuracy, %", 100, 2),
    "mean_iou": Scale("mean IoU, %", 100, 2),
    "mse": Scale("mean squared error", 1, 4),
    "mae": Scale("mean absolute error", 1, 4),
}


class Scoring(NamedTuple):
    """How the results of a task compare.

    Attributes:
        metrics: keys of `SCALES`; the first one decides.
        loss: how far a value of the first metric falls behind another.
        unit: of `loss`.
        error: from a value of the first metric, a number that is 0 for a perfect network.
        error_title: its name.
    """

    metrics: tuple[str, ...]
    loss: Callable[[float, float], float]
    unit: str
    error: Callable[[float], float]
    error_title: str


def _points_lost(share: float, baseline: float) -> float:
    return 100 * (baseline - share)


def _percent_more(error: float, baseline: float) -> float:
    return 100 * (error / baseline - 1)


def _percent_wrong(accuracy: float) -> float:
    return 100 * (1 - accuracy)


_ACCURATE = Scoring(("accuracy",), _points_lost, "points", _percent_wrong, "wrong, %")
SCORING: dict[TaskName, Scoring] = {
    "classification": _ACCURATE,
    "segmentation": _ACCURATE._replace(metrics=("accuracy", "mean_iou")),
    "forecasting": Scoring(("mse", "mae"), _percent_more, "%", float, "mean squared error"),
}
