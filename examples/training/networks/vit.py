"""Vision Transformer with the sizes of the paper's CIFAR-10 experiment.

Dosovitskiy et al., "An Image is Worth 16×16 Words", ICLR 2021.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import mixing_layer


class Attention(nn.Module):
    """Self-attention on tokens [batch, tokens, dim]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Of x [batch, tokens, dim], the same shape."""
        _, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(-1, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).reshape(-1, tokens, dim))


class VisionTransformer(nn.Module):
    """Pre-norm encoder on patches and a class token, whose last state gives the logits."""

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        patch_size: int = 4,
        dim: int = 512,
        depth: int = 6,
        heads: int = 8,
        hidden: int = 512,
        classes: int = 10,
    ) -> None:
        super().__init__()
        tokens = (image_size // patch_size) ** 2 + 1
        self.patches = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, dim), std=0.02))
        self.encoder = nn.Sequential()
        for _ in range(depth):
            self.encoder.extend(mixing_layer(dim, Attention(dim, heads), hidden))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, image_size, image_size]."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat([class_token, patches], 1) + self.position
        return self.head(self.norm(self.encoder(tokens)[:, 0]))
