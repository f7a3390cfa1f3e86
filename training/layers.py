"""Drop-in Linear and Conv layers whose weight is one repeated binary tile."""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tiling import ScaleMode, TilingError, check_tiling, tile_weight

ScaleSource = Literal["separate", "scores"]


class TiledLayer(nn.Module):
    """Mix-in that makes a PyTorch layer compute its weight from latent scores.

    Positional and further keyword arguments are those of the PyTorch layer. Scores and scale source
    start from kaiming_normal, the bias from zero.

    Args:
        p: number of tiles of the weight.
        scale: "per_tile" for p scales, "per_layer" for one.
        scale_from: "separate" trains a second tensor, `weight`, whose magnitudes give the scales;
            "scores" takes them from the scores themselves and leaves `weight` None.
        min_size: a weight with fewer elements (the paper's lambda) gets one tile and one scale;
            it is still binary.

    Attributes:
        scores: latent scores, the shape of the weight; their sums over the tiles make the bits.
        weight: source of the scales, or None.
        bias: float bias, or None.
        tiles: number of tiles in use, p or 1.

    Raises:
        TilingError: p does not divide the weight, or a mode is unknown.
    """

    weight: Tensor

    def __init__(
        self,
        *args: Any,
        p: int = 4,
        scale: ScaleMode = "per_tile",
        scale_from: ScaleSource = "separate",
        min_size: int = 64_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if scale_from not in get_args(ScaleSource):
            choices = ", ".join(get_args(ScaleSource))
            raise TilingError(f"scale_from is {scale_from!r}; use one of {choices}")
        self.tiles = 1 if self.weight.numel() < min_size else p
        self.scale: ScaleMode = scale
        self.scale_from: ScaleSource = scale_from
        check_tiling(self.weight.shape, self.tiles, scale)
        self.scores = nn.Parameter(torch.empty_like(self.weight))
        if scale_from == "scores":
            self.register_parameter("weight", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the latent tensors from kaiming_normal and zero the bias."""
        # The PyTorch constructor calls this too, before the scores exist.
        for name, parameter in self.named_parameters(recurse=False):
            if name == "bias":
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter)

    def tiled_weight(self) -> Tensor:
        """The weight the layer computes with; differentiable in `scores` and `weight`."""
        source = self.scores if self.scale_from == "scores" else self.weight
        return tile_weight(self.scores, source, self.tiles, self.scale)

    def to_dense(self) -> nn.Module:
        """The plain PyTorch layer with the same outputs; its weight is `tiled_weight()`."""
        state = {**self.state_dict(), "weight": self.tiled_weight()}
        latent = state.pop("scores")
        dense = self._plain_layer(bias="bias" in state, dtype=latent.dtype, device="meta")
        dense = dense.to_empty(device=latent.device)
        dense.load_state_dict(state)
        return dense.train(self.training)

    def _plain_layer(self, **options: Any) -> nn.Module:
        """The PyTorch layer of the same geometry; `options` are its bias, dtype and device."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """PyTorch's description, with the number of tiles and the scale mode."""
        return f"{super().extra_repr()}, tiles={self.tiles}, scale={self.scale}"


class TiledLinear(TiledLayer, nn.Linear):
    """`torch.nn.Linear` with a tiled weight; `TiledLayer` lists the further arguments."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Output of the layer, as the PyTorch layer's."""
        return F.linear(input, self.tiled_weight(), self.bias)

    def _plain_layer(self, **options: Any) -> nn.Linear:
        return nn.Linear(self.in_features, self.out_features, **options)


class TiledConv1d(TiledLayer, nn.Conv1d):
    """`torch.nn.Conv1d` with a tiled weight; `TiledLayer` lists the further arguments."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Output of the layer, as the PyTorch layer's."""
        output: Tensor = self._conv_forward(input, self.tiled_weight(), self.bias)
        return output

    def _plain_layer(self, **options: Any) -> nn.Conv1d:
        return nn.Conv1d(**_conv_geometry(self), **options)


class TiledConv2d(TiledLayer, nn.Conv2d):
    """`torch.nn.Conv2d` with a tiled weight; `TiledLayer` lists the further arguments."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Output of the layer, as the PyTorch layer's."""
        output: Tensor = self._conv_forward(input, self.tiled_weight(), self.bias)
        return output

    def _plain_layer(self, **options: Any) -> nn.Conv2d:
        return nn.Conv2d(**_conv_geometry(self), **options)


class TiledConv3d(TiledLayer, nn.Conv3d):
    """`torch.nn.Conv3d` with a tiled weight; `TiledLayer` lists the further arguments."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Output of the layer, as the PyTorch layer's."""
        output: Tensor = self._conv_forward(input, self.tiled_weight(), self.bias)
        return output

    def _plain_layer(self, **options: Any) -> nn.Conv3d:
        return nn.Conv3d(**_conv_geometry(self), **options)


def _conv_geometry(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> dict[str, Any]:
    names = "in_channels out_channels kernel_size stride padding dilation groups padding_mode"
    return {name: getattr(layer, name) for name in names.split()}
