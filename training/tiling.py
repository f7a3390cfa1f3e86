"""The mathematics of a tiled weight: aggregate, binarise, repeat, scale.

For a weight of L elements in p tiles of q = L/p, from latent scores S and a scale source A:

    s[j] = sum over i of S.flatten()[i*q + j]        aggregate, j = 0 .. q-1
    t[j] = +1 where s[j] > 0, else -1                sign(0) = -1
    W.flatten()[i*q + j] = alpha_i * t[j]            i = 0 .. p-1

alpha_i is mean|A| over tile i ("per_tile") or over the whole layer ("per_layer"). Source: arXiv
2407.12075, section 3.
"""

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

ScaleMode = Literal["per_layer", "per_tile"]


class TilingError(ValueError):
    """A weight cannot be tiled as asked; the message says what would work."""


class _StraightThroughTile(torch.autograd.Function):
    """Binarised column sums of `[p, q]` scores, repeated in each of the p rows.

    Backward is the identity: every score receives the gradient of its own position, unclipped.
    """

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        tile = torch.where(rows.sum(0) > 0, 1.0, -1.0).to(rows.dtype)
        return tile.expand_as(rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # noqa: ARG004
        return grad_outputs[0]


def tile_weight(scores: Tensor, scale_source: Tensor, p: int, scale: ScaleMode) -> Tensor:
    """Weight made of p copies of one binary tile, each copy times a positive scale.

    Args:
        scores: latent scores, floating point, any shape; their column sums make the tile.
        scale_source: tensor of the same shape whose mean magnitudes are the scales. May be
            `scores` itself.
        p: number of tiles; divides the number of elements.
        scale: "per_tile" for p scales, "per_layer" for one.

    Returns:
        Tensor with the shape and dtype of `scores`. Its gradient reaches `scores` straight
        through the sign, times the scale, and `scale_source` through the mean.

    Raises:
        TilingError: p does not divide the weight, or `scale` is unknown.
    """
    check_tiling(scores.shape, p, scale)
    rows = scores.reshape(p, -1)
    signs = cast("Tensor", _StraightThroughTile.apply(rows))  # type: ignore[no-untyped-call]
    magnitudes = scale_source.reshape(p, -1).abs()
    alpha = magnitudes.mean(1, keepdim=True) if scale == "per_tile" else magnitudes.mean()
    return (signs * alpha).reshape(scores.shape)


def check_tiling(shape: torch.Size, p: int, scale: str) -> None:
    """Raise TilingError unless a weight of `shape` divides into p tiles and `scale` is known."""
    if scale not in get_args(ScaleMode):
        raise TilingError(f"scale is {scale!r}; use one of {', '.join(get_args(ScaleMode))}")
    if p < 1:
        raise TilingError(f"p is {p}; the number of tiles must be at least 1")
    size = shape.numel()
    if size % p:
        nearest = next(divisor for divisor in range(p, 0, -1) if size % divisor == 0)
        raise TilingError(
            f"p = {p} does not divide the {size} elements of a weight of shape {list(shape)}; "
            f"use p = {nearest} or another divisor"
        )
