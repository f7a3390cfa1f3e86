"""ConvMixer: depthwise and pointwise convolutions on patches.

Trockman and Kolter, "Patches Are All You Need?", TMLR 2023.
"""

from torch import nn

from .blocks import Residual


def convmixer(
    channels: int = 1,
    patch_size: int = 2,
    dim: int = 256,
    depth: int = 8,
    kernel_size: int = 5,
    classes: int = 10,
) -> nn.Module:
    """Logits [batch, classes] of images [batch, channels, height, width]; odd `kernel_size`."""
    mixing = nn.Sequential()
    for _ in range(depth):
        depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        mixing.append(Residual(*_activated(depthwise)))
        mixing.extend(_activated(nn.Conv2d(dim, dim, 1)))
    return nn.Sequential(
        *_activated(nn.Conv2d(channels, dim, patch_size, stride=patch_size)),
        mixing,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(dim, classes),
    )


def _activated(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.GELU(), nn.BatchNorm2d(convolution.out_channels)
