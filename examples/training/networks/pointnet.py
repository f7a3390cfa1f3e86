"""PointNet for classification and part segmentation (Qi et al., CVPR 2017, arXiv 1612.00593).

Sizes are those of the paper's figure 2. Its penalty on transforms that are not orthogonal is left
out.
"""

import torch
from torch import Tensor, nn


class PointNetClassifier(nn.Module):
    """Clouds [batch, 3, points] to logits [batch, classes], float32."""

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        self.features = PointFeatures()
        self.head = nn.Sequential(
            _linear(1024, 512),
            _linear(512, 256),
            nn.Dropout(dropout),
            nn.Linear(256, classes),
        )

    def forward(self, cloud: Tensor) -> Tensor:
        """Logits of the cloud's class."""
        _, shape = self.features(cloud)
        logits: Tensor = self.head(shape)
        return logits


class PointNetSegmenter(nn.Module):
    """Clouds [batch, 3, points] to logits [batch, parts, points], float32.

    Each point's features and the shape's, side by side, go through one layer in the paper. That is
    the sum of a layer for each, of which the shape's needs to be computed but once.
    """

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.features = PointFeatures()
        self.point = nn.Conv1d(64, 512, 1, bias=False)
        self.shape = nn.Linear(1024, 512, bias=False)
        self.head = nn.Sequential(
            nn.BatchNorm1d(512),
            nn.ReLU(),
            _shared(512, 256),
            _shared(256, 128),
            nn.Conv1d(128, parts, 1),
        )

    def forward(self, cloud: Tensor) -> Tensor:
        """Logits of each point's part."""
        points, shape = self.features(cloud)
        logits: Tensor = self.head(self.point(points) + self.shape(shape).unsqueeze(2))
        return logits


class PointFeatures(nn.Module):
    """Features of each point, [batch, 64, points], and of the whole shape, [batch, 1024]."""

    def __init__(self) -> None:
        super().__init__()
        self.align_points = Alignment(3)
        self.lift = nn.Sequential(_shared(3, 64), _shared(64, 64))
        self.align_features = Alignment(64)
        self.widen = nn.Sequential(
            _shared(64, 64),
            _shared(64, 128),
            nn.Conv1d(128, 1024, 1, bias=False),
            nn.BatchNorm1d(1024),
        )

    def forward(self, cloud: Tensor) -> tuple[Tensor, Tensor]:
        """Of a cloud [batch, 3, points]."""
        local = self.align_features(self.lift(self.align_points(cloud)))
        return local, self.widen(local).amax(2)


class Alignment(nn.Module):
    """Multiplies points [batch, channels, points] by a matrix that it reads off them (T-net)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.points = nn.Sequential(_shared(channels, 64), _shared(64, 128), _shared(128, 1024))
        self.matrix = nn.Sequential(
            _linear(1024, 512), _linear(512, 256), nn.Linear(256, channels * channels)
        )
        self.register_buffer("identity", torch.eye(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of x, the same shape."""
        shape = self.points(x).amax(2)
        change = self.matrix(shape).reshape(-1, self.channels, self.channels)
        return (self.identity + change) @ x


def _shared(inputs: int, outputs: int) -> nn.Sequential:
    """A layer that all points share."""
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()
    )


def _linear(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())
