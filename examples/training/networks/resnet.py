"""ResNet in its form for small images: a 3×3 stem and no max-pooling.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from torch import Tensor, nn

STAGE_WIDTHS = (64, 128, 256, 512)


class _Block(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut is a 1×1 convolution where shapes differ."""

    def __init__(self, branch: nn.Sequential, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != outputs:
            self.shortcut = _convolution(channels, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.branch(x) + self.shortcut(x))


class _BasicBlock(_Block):
    """Two 3×3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        branch = nn.Sequential(
            *_convolution(channels, width, 3, stride),
            nn.ReLU(),
            *_convolution(width, width, 3),
        )
        super().__init__(branch, channels, width, stride)


class _Bottleneck(_Block):
    """1×1, 3×3 and 1×1 convolution; the last has four times as many filters."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        outputs = width * self.expansion
        branch = nn.Sequential(
            *_convolution(channels, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride),
            nn.ReLU(),
            *_convolution(width, outputs, 1),
        )
        super().__init__(branch, channels, outputs, stride)


def resnet18(channels: int = 1, classes: int = 10) -> nn.Module:
    """Logits [batch, classes] of images [batch, channels, height, width]."""
    return _resnet(_BasicBlock, (2, 2, 2, 2), channels, classes)


def resnet50(channels: int = 1, classes: int = 10) -> nn.Module:
    """Logits [batch, classes] of images [batch, channels, height, width]."""
    return _resnet(_Bottleneck, (3, 4, 6, 3), channels, classes)


def _resnet(
    block: type[_BasicBlock] | type[_Bottleneck],
    depths: tuple[int, ...],
    channels: int,
    classes: int,
) -> nn.Module:
    features = STAGE_WIDTHS[0]
    stages = []
    for width, depth in zip(STAGE_WIDTHS, depths, strict=True):
        stage = nn.Sequential()
        for index in range(depth):
            halves = index == 0 and width != STAGE_WIDTHS[0]
            stage.append(block(features, width, stride=2 if halves else 1))
            features = width * block.expansion
        stages.append(stage)
    return nn.Sequential(
        *_convolution(channels, STAGE_WIDTHS[0], 3),
        nn.ReLU(),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(features, classes),
    )


def _convolution(channels: int, filters: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution from kaiming_normal, and BatchNorm."""
    convolution = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(filters))
