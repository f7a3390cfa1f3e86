"""Swin-like Transformer: attention in windows that shift from layer to layer.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021;
two stages in place of four, for small images.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import mixing_layer

HEAD_DIM = 32
MLP_RATIO = 4


class WindowAttention(nn.Module):
    """Self-attention inside windows of a map [batch, height, width, dim].

    Args:
        dim: features of a position; HEAD_DIM of them make a head.
        map_size: height and width of the map.
        window: height and width of a window; divides map_size.
        shift: how far the windows move down and right, around the map's edge.
    """

    offsets: Tensor
    mask: Tensor

    def __init__(self, dim: int, map_size: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.heads = dim // HEAD_DIM
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.position_bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, self.heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.register_buffer("offsets", _relative_offsets(window), persistent=False)
        self.register_buffer("mask", _shift_mask(map_size, window, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of x [batch, height, width, dim], the same shape."""
        _, height, width, dim = x.shape
        rows, columns = height // self.window, width // self.window
        shifted = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        # Windows and heads share an axis: attention then has the usual four, and one permutation
        # cuts both.
        qkv = self.qkv(shifted).reshape(
            -1, rows, self.window, columns, self.window, 3, self.heads, HEAD_DIM
        )
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)
        qkv = qkv.reshape(3, -1, rows * columns * self.heads, self.window**2, HEAD_DIM)
        query, key, value = qkv.unbind()
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias())
        mixed = mixed.reshape(-1, rows, columns, self.heads, self.window, self.window, HEAD_DIM)
        mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, height, width, dim)
        output = self.output(mixed)
        return torch.roll(output, (self.shift, self.shift), (1, 2)) if self.shift else output

    def _bias(self) -> Tensor:
        """What is added to the logits, [windows * heads, tokens, tokens]."""
        by_position = self.position_bias[self.offsets].permute(2, 0, 1)
        return (self.mask[:, None] + by_position).flatten(0, 1)


class PatchMerging(nn.Module):
    """Every 2×2 positions become one of `outputs` features: [batch, height, width, dim]."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, height / 2, width / 2, outputs]."""
        _, height, width, dim = x.shape
        merged = x.reshape(-1, height // 2, 2, width // 2, 2 * dim).transpose(2, 3)
        return self.reduction(self.norm(merged.flatten(3)))


class SwinTransformer(nn.Module):
    """Stages of shifted-window attention with patch merging between; a mean gives the logits."""

    def __init__(
        self,
        channels: int = 1,
        image_size: int = 28,
        patch_size: int = 2,
        window: int = 7,
        dims: Sequence[int] = (192, 384),
        depths: Sequence[int] = (2, 4),
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, dims[0], patch_size, stride=patch_size)
        self.patch_norm = nn.LayerNorm(dims[0])
        self.stages = nn.Sequential()
        map_size = image_size // patch_size
        for index, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            if index:
                self.stages.append(PatchMerging(dims[index - 1], dim))
                map_size //= 2
            self.stages.append(_stage(dim, depth, map_size, window))
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, image_size, image_size]."""
        patches = self.patch_norm(self.patches(images).permute(0, 2, 3, 1))
        return self.head(self.norm(self.stages(patches)).mean((1, 2)))


def _stage(dim: int, depth: int, map_size: int, window: int) -> nn.Sequential:
    """Layers on a map of one size; every other one shifts its windows where there are several."""
    layers = nn.Sequential()
    for index in range(depth):
        shift = window // 2 if index % 2 and map_size > window else 0
        attention = WindowAttention(dim, map_size, window, shift)
        layers.extend(mixing_layer(dim, attention, MLP_RATIO * dim))
    return layers


def _relative_offsets(window: int) -> Tensor:
    """int64[tokens, tokens]: which offset in space lies between two positions of a window."""
    axis = torch.arange(window)
    places = torch.cartesian_prod(axis, axis)
    offsets = places[:, None] - places[None] + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]


def _shift_mask(map_size: int, window: int, shift: int) -> Tensor:
    """float[windows, tokens, tokens]: -inf between positions that only the shift brought together.

    A shifted window at the edge holds parts of opposite sides of the map.
    """
    axis = torch.arange(map_size)
    region = (axis >= map_size - window).long() + (axis >= map_size - shift).long()
    regions = 3 * region[:, None] + region
    count = map_size // window
    windows = regions.reshape(count, window, count, window).transpose(1, 2).reshape(-1, window**2)
    apart = windows[:, :, None] != windows[:, None]
    return torch.zeros(apart.shape).masked_fill(apart, float("-inf"))
