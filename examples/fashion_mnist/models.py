"""The two networks of the example, tiled or float."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from tbn_compile.training import TiledConv2d, TiledLinear


class Layers(NamedTuple):
    """The layer types that a network is built from."""

    linear: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]


FLOAT = Layers(nn.Linear, nn.Conv2d)
# These convolutions are below the paper's usual threshold, so they bring their own.
TILED = Layers(partial(TiledLinear, p=4), partial(TiledConv2d, p=4, min_size=4_096))


def mlp(layers: Layers) -> nn.Module:
    """784-128-10 perceptron on flattened images [batch, 784]."""
    return nn.Sequential(layers.linear(784, 128), nn.ReLU(), layers.linear(128, 10))


def cnn(layers: Layers) -> nn.Module:
    """Three convolutions with BatchNorm on images [batch, 1, 28, 28]."""
    return nn.Sequential(
        *_block(layers, 1, 16),
        nn.MaxPool2d(2),
        *_block(layers, 16, 32),
        nn.MaxPool2d(2),
        *_block(layers, 32, 64),
        nn.Flatten(),
        layers.linear(64 * 7 * 7, 10),
    )


def _block(layers: Layers, channels: int, filters: int) -> list[nn.Module]:
    convolution = layers.conv(channels, filters, 3, padding=1, bias=False)
    normalisation = nn.BatchNorm2d(filters)
    # Filters with the same bits become different features once their gammas differ in sign.
    signs = torch.where(torch.rand(filters) < 0.5, -1.0, 1.0)
    normalisation.weight = nn.Parameter(signs)
    return [convolution, normalisation, nn.ReLU()]
