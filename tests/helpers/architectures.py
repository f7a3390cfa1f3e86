"""Small networks of the kinds that boards run, with tiles in their layers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tbn_compile.training import TiledConv1d, TiledConv2d, TiledLinear, export


class TransformerBlock(nn.Module):
    """LayerNorm, attention, GELU: [batch, 16, 32] to the same."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = TiledLinear(width, width, p=4, min_size=0)
        self.key = TiledLinear(width, width, p=4, min_size=0)
        self.value = TiledLinear(width, width, p=4, min_size=0)
        self.project = TiledLinear(width, width, p=4, min_size=0)
        self.expand = TiledLinear(width, 2 * width, p=8, min_size=0)
        self.contract = TiledLinear(2 * width, width, p=8, min_size=0)

    def forward(self, x):
        y = self.first(x)
        query, key, value = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) * 0.3535, dim=-1)
        x = x + self.project((weights @ value).transpose(1, 2).flatten(-2))
        return x + self.contract(nn.functional.gelu(self.expand(self.second(x))))


class ResidualNetwork(nn.Module):
    """A stem and two residual blocks: [batch, 3, 12, 12] to [batch, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = TiledConv2d(3, 8, 3, padding=1, p=2, min_size=0)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (8, 8, 8, 16, 16))
        self.a1 = TiledConv2d(8, 8, 3, padding=1, p=4, min_size=0)
        self.a2 = TiledConv2d(8, 8, 3, padding=1, p=4, min_size=0)
        self.b1 = TiledConv2d(8, 16, 3, padding=1, stride=2, p=4, min_size=0)
        self.b2 = TiledConv2d(16, 16, 3, padding=1, p=4, min_size=0)
        self.shortcut = TiledConv2d(8, 16, 1, stride=2, p=2, min_size=0)
        self.head = TiledLinear(16, 5, p=1, min_size=0)

    def forward(self, x):
        stem, a1, a2, b1, b2 = self.norms
        x = torch.relu(stem(self.stem(x)))
        x = torch.relu(x + a2(self.a2(torch.relu(a1(self.a1(x))))))
        x = torch.relu(self.shortcut(x) + b2(self.b2(torch.relu(b1(self.b1(x))))))
        return self.head(x.mean((2, 3)))


class SeriesNetwork(nn.Module):
    """A 1-D CNN for time series: [batch, 4, 64] to [batch, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = TiledConv1d(4, 16, 5, padding=2, p=4, min_size=0)
        self.second = TiledConv1d(16, 32, 3, stride=2, p=4, min_size=0)
        self.third = TiledConv1d(32, 32, 3, padding=2, dilation=2, groups=2, p=4, min_size=0)
        self.norm = nn.BatchNorm1d(16)
        self.head = TiledLinear(32 * 15, 6, p=2, min_size=0)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.tanh(self.second(x))
        x = nn.functional.max_pool1d(torch.sigmoid(self.third(x)), 2)
        return self.head(x.flatten(1))


class UnevenNetwork(nn.Module):
    """Tiles that end inside rows, each with a scale: [batch, 20] to [batch, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = TiledLinear(20, 12, p=16, min_size=0)
        self.second = TiledLinear(12, 6, p=8, min_size=0)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


ARCHITECTURES = {
    "transformer": (TransformerBlock, (16, 32)),
    "residual": (ResidualNetwork, (3, 12, 12)),
    "series": (SeriesNetwork, (4, 64)),
    "uneven": (UnevenNetwork, (20,)),
}


def export_architecture(name: str, folder: Path, seed: int = 0) -> Path:
    """Write one of `ARCHITECTURES` with random weights and statistics; batch is dynamic."""
    torch.manual_seed(seed)
    make, shape = ARCHITECTURES[name]
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, -1.5, 1.5)
    path = folder / f"{name}.onnx"
    export(model, path, torch.randn(2, *shape))
    return path
