"""Linear and Conv layers with a tiled weight, which train on the distinct rows alone."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .parametrization import (
    Latent,
    ScaleSource,
    TiledTensor,
    TiledWeight,
    plan_tiling,
    tile_tensor,
    tiled_tensor,
)
from .tiling import ScaleMode, binarise, differentiates_backward, repeat_tile, signs

WeightGradient = Callable[[Tensor, Tensor], Tensor]
MIN_SIZE = 64_000
"""The paper's lambda: a weight with fewer elements gets one tile."""


class _StraightThrough(torch.autograd.Function):
    """Identity on outputs, whose gradient also makes that of the full scores.

    Each score receives the gradient of its own position of the weight, though the outputs are
    copies of those of the distinct rows.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        outputs: Tensor,
        scores: Tensor,  # noqa: ARG004 -- autograd's
        x: Tensor,  # noqa: ARG004 -- autograd's
        layer: "_RowsLayer",  # noqa: ARG004 -- autograd's
    ) -> Tensor:
        return outputs.view_as(outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 -- autograd's
        _, scores, x, ctx.layer = inputs
        ctx.save_for_backward(scores, x)

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,) = grad_outputs
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None
        scores, x = ctx.saved_tensors
        if differentiates_backward():
            return None, *ctx.layer.gradients(scores, x, grad), None
        scores_grad = ctx.layer.weight_gradient(x.to(grad.dtype), grad)
        return grad, scores_grad.to(scores.dtype).reshape(scores.shape), None, None


class _RowsLayer(NamedTuple):
    """What a gradient is made with.

    Attributes:
        apply_rows: outputs of an input and rows of the weight.
        weight_gradient: gradient of the weight from inputs and gradient of outputs.
        shape: of the weight.
    """

    apply_rows: Callable[[Tensor, Tensor], Tensor]
    weight_gradient: WeightGradient
    shape: torch.Size

    def gradients(self, scores: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of scores [p, q] and input that have gradients too, from the whole weight."""
        dtype = torch.promote_types(scores.dtype, x.dtype)
        weight = signs(scores, binarise(scores)).reshape(self.shape)
        outputs = self.apply_rows(x.to(dtype), weight.to(dtype))
        inputs = (scores, x) if x.requires_grad else (scores,)
        made = torch.autograd.grad(
            outputs, inputs, grad.reshape(outputs.shape).to(outputs.dtype), create_graph=True
        )
        return made[0], made[1] if x.requires_grad else None


class TiledLayer(nn.Module):
    """Mix-in that gives a PyTorch layer a tiled weight; `tile_model` makes it from plain layers.

    Positional and further keyword arguments are those of the PyTorch layer. The weight starts from
    kaiming_normal, the bias from zero.

    In training, where a tile holds whole rows (output features or channels), outputs and the
    gradient of the input are computed from the N / p distinct rows. In evaluation, and where
    tiles end inside rows, the layer is the PyTorch layer on `weight`.

    Args:
        p: number of tiles of the weight.
        scale: "per_tile" for p scales, "per_layer" for one.
        scale_from: "separate" or "weight"; see `TiledWeight`.
        min_size: a weight with fewer elements (the paper's lambda) gets one tile and one scale;
            it is still binary.
        latent: "full" or "aggregate"; see `TiledAggregate`.

    Attributes:
        weight: the tiled weight. Assigning a tensor sets the latent tensors from it.
        bias: float bias, or None.

    Raises:
        TilingError: p does not divide the weight, or a mode is unknown.
    """

    weight: Tensor
    bias: Any
    _spatial_axes = 0

    def __init__(
        self,
        *args: Any,
        p: int = 4,
        scale: ScaleMode = "per_tile",
        scale_from: ScaleSource = "separate",
        min_size: int = MIN_SIZE,
        latent: Latent = "full",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        tiling = plan_tiling(self, "weight", p, scale, scale_from, min_size, latent)
        tile_tensor(self, "weight", tiling)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from kaiming_normal and zero the bias."""
        if not parametrize.is_parametrized(self):  # still in PyTorch's constructor
            super().reset_parameters()  # type: ignore[misc]
            return
        self.weight = nn.init.kaiming_normal_(torch.empty_like(self.weight))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- torch's name
        """Output of the layer, as the PyTorch layer's."""
        tiled = tiled_tensor(self)
        if tiled is None or not self.training or not self._rows_repeat(tiled, input):
            return cast("Tensor", super().forward(input))
        return self._repeat_rows(tiled, input)

    def _rows_repeat(self, tiled: TiledTensor, x: Tensor) -> bool:  # noqa: ARG002 -- subclasses ask it
        """Whether the outputs are scaled copies of those of the tile's rows."""
        return tiled.tiling.p > 1 and tiled.tiling.shape[0] % tiled.tiling.p == 0

    def _repeat_rows(self, tiled: TiledTensor, x: Tensor) -> Tensor:
        """Outputs of the tile's rows, copied p times, each copy times its scale."""
        tiling = tiled.tiling
        scores, alpha = tiling.rows(tiled.latents[0]), tiling.scales(tiled.latents[-1])
        if tiling.latent == "aggregate":  # its gradient is that of the tile
            tile = repeat_tile(scores, alpha.new_ones(1, 1))
            return self._scale(self._copies(x, tile, tiling), alpha)
        copies = self._copies(x, binarise(scores), tiling)
        layer = _RowsLayer(self._apply_rows, self._weight_gradient(tiling.shape), tiling.shape)
        passed = _StraightThrough.apply(copies, scores, x, layer)  # type: ignore[no-untyped-call]
        return self._scale(cast("Tensor", passed), alpha)

    def _copies(self, x: Tensor, tile: Tensor, tiling: TiledWeight) -> Tensor:
        """Outputs without scale or bias, [.., p, N / p, ..] at the output axis, in one memory."""
        outputs = self._apply_rows(x, tile.reshape(-1, *tiling.shape[1:]))
        axis = outputs.ndim - 1 - self._spatial_axes
        return outputs.unsqueeze(axis).expand(
            *outputs.shape[:axis], tiling.p, *outputs.shape[axis:]
        )

    def _scale(self, copies: Tensor, alpha: Tensor) -> Tensor:
        """Outputs [.., N, ..]: each of the p copies times its scale [p, 1], plus the bias."""
        trailing = (1,) * self._spatial_axes
        axis = copies.ndim - 2 - self._spatial_axes
        alpha = alpha.to(copies.dtype).reshape(-1, 1, *trailing)
        if self.bias is None:
            return (copies * alpha).flatten(axis, axis + 1)
        bias = self.bias.to(copies.dtype).reshape(alpha.shape[0], -1, *trailing)
        return torch.addcmul(bias, copies, alpha).flatten(axis, axis + 1)

    def _apply_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """Outputs of some rows of the weight, without bias."""
        raise NotImplementedError

    def _weight_gradient(self, shape: torch.Size) -> WeightGradient:
        """The gradient of a weight of `shape` as a function of inputs and gradient of outputs."""
        raise NotImplementedError


class TiledLinear(TiledLayer, nn.Linear):
    """`torch.nn.Linear` with a tiled weight; `TiledLayer` lists the further arguments."""

    def _apply_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        return F.linear(x, rows)

    def _weight_gradient(self, shape: torch.Size) -> WeightGradient:
        return partial(_linear_weight_gradient, shape=shape)


class _TiledConv(TiledLayer):
    """What the convolutions have in common: copies need one group and numbers for a padding."""

    padding: tuple[int, ...] | str
    padding_mode: Any
    groups: int

    def _rows_repeat(self, tiled: TiledTensor, x: Tensor) -> bool:
        batched = x.ndim == len(tiled.tiling.shape)
        plain = self.groups == 1 and self.padding_mode == "zeros"
        numbers = not isinstance(self.padding, str)
        return batched and plain and numbers and super()._rows_repeat(tiled, x)

    def _apply_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        return cast("Tensor", self._conv_forward(x, rows, None))  # type: ignore[operator]

    def _weight_gradient(self, shape: torch.Size) -> WeightGradient:
        geometry = {name: getattr(self, name) for name in ("stride", "padding", "dilation")}
        return partial(_conv_weight_gradient, shape=shape, **geometry)


class TiledConv1d(_TiledConv, nn.Conv1d):
    """`torch.nn.Conv1d` with a tiled weight; `TiledLayer` lists the further arguments."""

    _spatial_axes = 1


class TiledConv2d(_TiledConv, nn.Conv2d):
    """`torch.nn.Conv2d` with a tiled weight; `TiledLayer` lists the further arguments."""

    _spatial_axes = 2


class TiledConv3d(_TiledConv, nn.Conv3d):
    """`torch.nn.Conv3d` with a tiled weight; `TiledLayer` lists the further arguments."""

    _spatial_axes = 3


TILED_LAYERS: dict[type[nn.Module], type[TiledLayer]] = {
    nn.Linear: TiledLinear,
    nn.Conv1d: TiledConv1d,
    nn.Conv2d: TiledConv2d,
    nn.Conv3d: TiledConv3d,
}
"""The tiled form of each PyTorch layer."""


def _linear_weight_gradient(x: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
    """Gradient [N, K] from inputs [.., K] and the outputs' gradient [.., p, N / p]."""
    outputs, inputs = shape
    return grad.reshape(-1, outputs).t() @ x.reshape(-1, inputs)


def _conv_weight_gradient(
    x: Tensor,
    grad: Tensor,
    shape: torch.Size,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Gradient of a kernel from inputs [B, C, ..] and the outputs' gradient [B, p, N / p, ..]."""
    kernel = x.new_empty(1).expand(shape)  # only its shape is read
    _, gradient, _ = torch.ops.aten.convolution_backward(
        grad.flatten(1, 2), x, kernel, None, stride, padding, dilation,
        False, [0] * len(stride), 1, (False, True, False),
    )  # fmt: skip
    return cast("Tensor", gradient)
