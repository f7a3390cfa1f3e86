"""What every data set gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Samples(NamedTuple):
    """Inputs and targets, one sample per index of their first axes."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Data:
    """A data set in memory.

    Attributes:
        train: samples to learn from.
        test: samples that nothing is learned from; measured after each epoch.
        prepare: what a network takes, float32, from a batch of stored inputs.
        augment: random variants of a batch of prepared inputs, of the same shape.
    """

    train: Samples
    test: Samples
    prepare: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor], Tensor]
