"""Fashion-MNIST: grey images of clothes in ten classes, in place of the paper's CIFAR-10."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Data, Samples

# The other example reads the files.
sys.path.append(str(Path(__file__).parents[2] / "fashion_mnist"))
import dataset

MEAN, DEVIATION = 0.2860, 0.3530
PADDING = 2


def fashion_mnist() -> Data:
    """Images uint8 [n, 1, 28, 28] and classes int64 [n].

    Raises:
        FileNotFoundError: the Debian package `dataset-fashion-mnist` is not installed.
    """
    return Data(_load("train"), _load("test"), prepare, augment)


def plain_fashion_mnist() -> Data:
    """The same without augmentation, for networks that have too few weights to gain by it."""
    return replace(fashion_mnist(), augment=nn.Identity())


def _load(split: str) -> Samples:
    return Samples(*(torch.tensor(array) for array in dataset.load_bytes(split)))


def prepare(images: Tensor) -> Tensor:
    """Pixels as float32 of mean 0 and variance 1 over the training images."""
    return (images.float() / 255 - MEAN) / DEVIATION


def augment(images: Tensor) -> Tensor:
    """Each image moved by up to two pixels and, half of them, mirrored; black comes in."""
    count, _, height, width = images.shape
    padded = F.pad(images, [PADDING] * 4, value=-MEAN / DEVIATION)
    top, left = torch.randint(2 * PADDING + 1, (2, count, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    mirrored = torch.rand(count, 1, device=images.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    each = torch.arange(count, device=images.device)
    return padded[each[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
