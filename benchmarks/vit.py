"""The Vision Transformer whose memory the paper reports, in PyTorch alone.

Image 256, patch 32, width 1024, depth 6, 16 heads, hidden width 2048, 1000 classes: 54.6 million
parameters (Gorbett, Shirazi, Ray, CIKM 2024, section on memory).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGE, PATCH, WIDTH, HEADS, HIDDEN, CLASSES = 256, 32, 1024, 16, 2048, 1000


class Attention(nn.Module):
    """Self-attention of [batch, tokens, WIDTH], normalised first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.project = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.merge = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        batch, tokens, _ = x.shape
        parts = self.project(self.norm(x)).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query @ key.transpose(-1, -2)) * (WIDTH // HEADS) ** -0.5
        heads = scores.softmax(-1) @ value
        return self.merge(heads.transpose(1, 2).reshape(batch, tokens, WIDTH))


class VisionTransformer(nn.Module):
    """[batch, 3, IMAGE, IMAGE] → [batch, CLASSES]."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        inputs, patches = 3 * PATCH**2, (IMAGE // PATCH) ** 2
        self.embed = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, WIDTH), nn.LayerNorm(WIDTH)
        )
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, patches + 1, WIDTH))
        self.attention = nn.ModuleList(Attention() for _ in range(depth))
        self.forward_layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        batch, side = images.shape[0], IMAGE // PATCH
        patches = images.reshape(batch, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 3, 5, 1)
        x = self.embed(patches.reshape(batch, side * side, 3 * PATCH**2))
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1) + self.position
        for attention, forward in zip(self.attention, self.forward_layers, strict=True):
            x = x + attention(x)
            x = x + forward(x)
        return self.head(self.norm(x[:, 0]))


def build_vit(p: int, depth: int = 6, seed: int = 0) -> VisionTransformer:
    """The network with random weights, every Linear one tile `p` times with `p` scales; 0: dense.

    Args:
        p: tiles per layer, or 0.
        depth: blocks.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    model = VisionTransformer(depth).eval()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for layer in layers if p else []:
        count, width = layer.weight.numel(), layer.in_features**-0.5
        tile = torch.randint(0, 2, (1, count // p)) * 2.0 - 1.0
        scale = (torch.rand(p, 1) + 0.5) * width
        layer.weight.data = (tile * scale).reshape(layer.weight.shape)
    return model
