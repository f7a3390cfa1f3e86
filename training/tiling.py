"""The mathematics of a tiled weight: aggregate, binarise, repeat, scale.

For a weight of L elements in p tiles of q = L/p, from latent scores S and a scale source A:

    s[j] = sum over i of S.flatten()[i*q + j]        aggregate, j = 0 .. q-1
    t[j] = +1 where s[j] > 0, else -1                sign(0) = -1
    W.flatten()[i*q + j] = alpha_i * t[j]            i = 0 .. p-1

alpha_i is mean|A| over tile i ("per_tile") or over the whole layer ("per_layer"). With g the
gradient of W, and n the number of weights that share a scale:

    dL/dS[i*q + j] = g[i*q + j] * alpha_i            straight through the sign, unclipped
    dL/dA[k] = sign(A[k]) / n * sum of g * t over the weights that share k's scale

Only the aggregate need be stored: with s itself for S and one number a_i for the whole of tile i
of A, the same equations give dL/ds[j] = sum over i of g[i*q + j] * alpha_i and dL/da_i as dL/dA.
Source: arXiv 2407.12075, section 3.
"""

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from tbn_compile.errors import TbnError

ScaleMode = Literal["per_layer", "per_tile"]


class TilingError(TbnError, ValueError):
    """A weight cannot be tiled as asked; the message says what would work."""


class _Signs(torch.autograd.Function):
    """The tile in the shape of its scores, [p, q] or [1, q], straight through for the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, tile: Tensor) -> Tensor:
        return tile.expand_as(scores).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 -- autograd's
        return grad_outputs[0], None


class _RepeatTile(torch.autograd.Function):
    """The `[p, q]` weight `alpha * tile`, whose gradient goes past the sign to the scores."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, tile: Tensor, alpha: Tensor) -> Tensor:  # noqa: ARG004 -- autograd's
        return alpha * tile

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004 -- autograd's
        scores, tile, alpha = inputs
        ctx.save_for_backward(scores, tile, alpha)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, Tensor]:
        (grad,) = grad_outputs
        scores, tile, alpha = ctx.saved_tensors
        scores_grad = (grad * alpha).sum_to_size(scores.shape)
        if not differentiates_backward():
            return scores_grad, None, (grad @ tile).unsqueeze(1)
        return scores_grad, None, (grad * signs(scores, tile)).sum(1, keepdim=True)


class _MeanMagnitude(torch.autograd.Function):
    """Mean of the magnitudes in each row; what `span` weights share gets 1 / span of a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(source: Tensor, span: int) -> Tensor:  # noqa: ARG004 -- autograd's
        return source.abs().mean(1, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:  # noqa: ARG004 -- autograd's
        source, ctx.span = inputs
        ctx.save_for_backward(source)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (source,) = ctx.saved_tensors
        return source.sign() * (grad_outputs[0] / ctx.span), None


def differentiates_backward() -> bool:
    """Whether a gradient that is being computed shall have a gradient too."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def signs(scores: Tensor, tile: Tensor) -> Tensor:
    """The tile [q] in the shape of its scores, whose gradient is that of the scores."""
    return cast("Tensor", _Signs.apply(scores, tile))  # type: ignore[no-untyped-call]


def binarise(scores: Tensor) -> Tensor:
    """Tile [q] of +1 and -1 from scores [p, q], or from the aggregate [1, q]; no gradient."""
    signs = scores.detach().sum(0).sign()
    return (signs - 0.5).sign()  # sign(0) = -1; several times as fast as a comparison


def scales_of(source: Tensor, size: int, p: int, scale: ScaleMode) -> Tensor:
    """Scales [p, 1] of a weight's tiles; equal ones if the layer has one.

    Args:
        source: of the weight's size, or one element for each scale.
        size: L, the number of weights.
        p: number of tiles.
        scale: "per_tile" or "per_layer".
    """
    count = p if scale == "per_tile" else 1
    rows = source.reshape(count, -1)
    alpha = cast("Tensor", _MeanMagnitude.apply(rows, size // count))  # type: ignore[no-untyped-call]
    return alpha.expand(p, 1)


def repeat_tile(scores: Tensor, alpha: Tensor) -> Tensor:
    """Weight [m, q]: row i is the tile of `scores`, [m, q] or [1, q], times alpha [m, 1]."""
    tile = binarise(scores)
    return cast("Tensor", _RepeatTile.apply(scores, tile, alpha))  # type: ignore[no-untyped-call]


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
    alpha = scales_of(scale_source, scores.numel(), p, scale)
    return repeat_tile(scores.reshape(p, -1), alpha).reshape(scores.shape)


def check_tiling(shape: torch.Size, p: int, scale: str) -> None:
    """Raise TilingError unless a weight of `shape` divides into p tiles and `scale` is known."""
    check_choice("scale", scale, ScaleMode)
    if not isinstance(p, int) or isinstance(p, bool) or p < 1:
        raise TilingError(f"p is {p!r}; the number of tiles must be an int of at least 1")
    size = shape.numel()
    if size == 0:
        raise TilingError(f"a weight of shape {list(shape)} has no elements; skip the layer")
    if size % p:
        nearest = next(each for each in range(min(p, size), 0, -1) if size % each == 0)
        raise TilingError(
            f"p = {p} does not divide the {size} elements of a weight of shape {list(shape)}; "
            f"use p = {nearest} or another divisor"
        )


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise TilingError unless `value` is one of the strings of the Literal `choices`."""
    if value not in get_args(choices):
        raise TilingError(f"{name} is {value!r}; use one of {', '.join(get_args(choices))}")
