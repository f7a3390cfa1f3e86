"""What a network learns: the loss, the metrics, and the steps of an epoch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as lightning
import torch
from datasets.data import Data, Samples
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from recipe import Part, Recipe, RecipeError, TaskName
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from tbn_compile.training.parametrization import tiled_tensors

EVALUATION_BATCH = 500
OPTIMISERS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
}


def _cross_entropy(recipe: Recipe) -> nn.Module:
    return nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)


class Task(NamedTuple):
    """Loss and metrics of one kind of task.

    Attributes:
        loss: from a recipe, the loss of outputs and targets.
        metrics: from the targets of the training samples, metrics by name; the first is the one
            that tables show.
    """

    loss: Callable[[Recipe], nn.Module]
    metrics: Callable[[Tensor], dict[str, Metric | MetricCollection]]


def _classes(targets: Tensor) -> int:
    return int(targets.max()) + 1


TASKS: dict[TaskName, Task] = {
    "classification": Task(
        _cross_entropy,
        lambda targets: {"accuracy": MulticlassAccuracy(_classes(targets), average="micro")},
    ),
    "segmentation": Task(
        _cross_entropy,
        lambda targets: {
            "accuracy": MulticlassAccuracy(_classes(targets), average="micro"),
            "mean_iou": MulticlassJaccardIndex(_classes(targets)),
        },
    ),
    "forecasting": Task(
        lambda _: nn.MSELoss(),
        lambda _: {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()},
    ),
}


def make_metrics(recipe: Recipe, data: Data) -> MetricCollection:
    """The metrics of a recipe's task, by name."""
    return MetricCollection(TASKS[recipe.task].metrics(data.train.targets))


@torch.no_grad()
def score(predict: Callable[[Tensor], Tensor], recipe: Recipe, data: Data) -> dict[str, float]:
    """Metrics of all test samples, from the outputs that `predict` makes of prepared inputs."""
    metrics = make_metrics(recipe, data)
    batches = zip(*(part.split(EVALUATION_BATCH) for part in data.test), strict=True)
    for inputs, targets in batches:
        metrics.update(predict(data.prepare(inputs)).float().cpu(), targets)
    return {name: float(value) for name, value in metrics.compute().items()}


class Learner(lightning.LightningModule):
    """Trains a network on a data set as a recipe says.

    Outputs are [batch, classes], [batch, classes, points] or [batch, horizon, channels]; targets
    int64 [batch], int64 [batch, points] or float32 as the outputs.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, data: Data) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.data = data
        self.loss = TASKS[recipe.task].loss(recipe)
        self.metrics = make_metrics(recipe, data)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.network(inputs)
        return outputs

    def on_train_start(self) -> None:
        if self.device.type == "cuda" and self.trainer.world_size == 1:
            self._record()

    def _record(self) -> None:
        """Record the network's forward and backward as CUDA graphs.

        These networks are so small that a GPU would wait for the launches of their kernels.
        """
        samples = self.data.train.inputs[: self.recipe.batch_size].to(self.device)
        example = self.data.augment(self.data.prepare(samples))
        with self.trainer.precision_plugin.forward_context():
            torch.set_autocast_cache_enabled(False)  # a cache would outlive what was recorded
            torch.cuda.make_graphed_callables(self.network, (example,))

    def on_train_end(self) -> None:
        self.network.__dict__.pop("forward", None)  # the recorded one

    def on_after_batch_transfer(self, batch: Samples, dataloader_idx: int) -> Samples:  # noqa: ARG002 -- Lightning's
        inputs = self.data.prepare(batch.inputs)
        if self.trainer.training:
            inputs = self.data.augment(inputs)
        return Samples(inputs, batch.targets)

    def training_step(self, batch: Samples, _: int) -> Tensor:
        loss: Tensor = self.loss(self(batch.inputs), batch.targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Samples, _: int) -> None:
        self.metrics.update(self(batch.inputs).float(), batch.targets)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.metrics.compute(), prog_bar=True)
        self.metrics.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["recipe"] = self.recipe.model_dump()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["recipe"] != self.recipe.model_dump():
            raise RecipeError(
                "the run's checkpoint is of another recipe or number of epochs; "
                "remove the run's folder, or choose another with --runs"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimiser = self.optimiser.build(OPTIMISERS, self.network.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=optimiser.defaults["lr"],
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=self.recipe.warm_up,
            cycle_momentum=False,
        )
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @property
    def optimiser(self) -> Part:
        """The recipe's for this network's weights."""
        tiled = any(tiled_tensors(layer) for layer in self.network.modules())
        return (self.recipe.tiled_optimiser if tiled else None) or self.recipe.optimiser
