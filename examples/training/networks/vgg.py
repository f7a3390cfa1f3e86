"""VGG-Small of the literature on binary networks: six convolutions and one linear layer.

Zhang, Yang, Ye and Hua, "LQ-Nets", ECCV 2018, after Simonyan and Zisserman, ICLR 2015.
"""

from torch import nn

STAGE_WIDTHS = (128, 256, 512)


def vgg_small(channels: int = 1, image_size: int = 28, classes: int = 10) -> nn.Module:
    """Logits [batch, classes] of images [batch, channels, image_size, image_size]."""
    layers: list[nn.Module] = []
    for width in STAGE_WIDTHS:
        layers += [*_convolution(channels, width), *_convolution(width, width), nn.MaxPool2d(2)]
        channels = width
    pixels = (image_size // 2 ** len(STAGE_WIDTHS)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * pixels, classes))


def _convolution(channels: int, filters: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return convolution, nn.BatchNorm2d(filters), nn.ReLU()
