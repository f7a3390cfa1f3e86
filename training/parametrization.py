"""The tiled weight as a parametrization: `layer.weight` is the tiled weight, everywhere it is read.

Built on `torch.nn.utils.parametrize`. The latent tensors are parameters of the layer's
`parametrizations.weight`: `original0` holds the scores and `original1`, if there is one, the source
of the scales.
"""

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from .tiling import ScaleMode, TilingError, check_choice, check_tiling, repeat_tile, scales_of

ScaleSource = Literal["separate", "weight"]
Latent = Literal["full", "aggregate"]


class TiledWeight(nn.Module):
    """Makes a weight from latent tensors of its own shape; `tiling.py` has the equations.

    Args:
        shape: the weight's shape.
        p: number of tiles.
        scale: "per_tile" for p scales, "per_layer" for one.
        scale_from: "separate" trains a second tensor, whose magnitudes give the scales; "weight"
            takes them from the scores themselves.

    Raises:
        TilingError: p does not divide the weight, or a mode is unknown.
    """

    latent: Latent = "full"

    def __init__(
        self, shape: torch.Size, p: int, scale: ScaleMode, scale_from: ScaleSource
    ) -> None:
        super().__init__()
        check_tiling(shape, p, scale)
        check_choice("scale_from", scale_from, ScaleSource)
        self.shape = shape
        self.p = p
        self.scale: ScaleMode = scale
        self.scale_from: ScaleSource = scale_from

    @property
    def tile_length(self) -> int:
        """q, the number of elements of the tile."""
        return self.shape.numel() // self.p

    @property
    def scale_count(self) -> int:
        """How many scales the weight has: p or 1."""
        return self.p if self.scale == "per_tile" else 1

    def forward(self, scores: Tensor, source: Tensor | None = None) -> Tensor:
        """The weight; differentiable in both.

        Args:
            scores: the weight's shape, or the aggregate [q].
            source: the weight's shape, or stored scales [C]; None for the scores.
        """
        alpha = self.scales(scores if source is None else source)
        return repeat_tile(self.rows(scores), alpha).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Latent tensors to start from: the weight itself, for each of them."""
        count = 1 if self.scale_from == "weight" else 2
        return tuple(weight.clone() for _ in range(count))

    def rows(self, scores: Tensor) -> Tensor:
        """Scores as [p, q], or an aggregate as [1, q]."""
        return scores.reshape(-1, self.tile_length)

    def scales(self, source: Tensor) -> Tensor:
        """Scales [p, 1] from their source; equal ones if the layer has one."""
        return scales_of(source, self.shape.numel(), self.p, self.scale)

    def extra_repr(self) -> str:
        """The tiling, for `print(model)`."""
        return f"p={self.p}, scale={self.scale}, scale_from={self.scale_from}, latent={self.latent}"


class TiledAggregate(TiledWeight):
    """Makes a weight from what its bits and scales depend on: q + C numbers in place of 2 L.

    `original0` is the aggregate s, float[q], and `original1` the scales, float[C]. The aggregate
    receives the sum of the gradients of its p positions, where `TiledWeight` gives each score its
    own: by SGD, momentum and weight decay it moves as the sum of full scores under the same scales;
    Adam, which normalises element by element, takes other steps. A stored scale moves as a full
    source would whose elements are equal in each tile.

    Raises:
        TilingError: as `TiledWeight`; or the scales are to come from scores that are not kept.
    """

    latent: Latent = "aggregate"

    def __init__(
        self, shape: torch.Size, p: int, scale: ScaleMode, scale_from: ScaleSource
    ) -> None:
        super().__init__(shape, p, scale, scale_from)
        if scale_from != "separate":
            raise TilingError(
                "latent='aggregate' keeps no scores that scales could come from; "
                "use scale_from='separate'"
            )

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The aggregate [q] and the scales [C] of a weight."""
        magnitudes = weight.abs().reshape(self.scale_count, -1)
        return self.rows(weight).sum(0), magnitudes.mean(1)


_PARAMETRIZATIONS: dict[Latent, type[TiledWeight]] = {
    "full": TiledWeight,
    "aggregate": TiledAggregate,
}


class TiledTensor(NamedTuple):
    """One tiled weight of a module.

    Attributes:
        tensor: its name in its module: "weight" or, in attention, "in_proj_weight" and so on.
        tiling: its parametrization.
        latents: the scores and, unless they are the scores, the source of the scales.
    """

    tensor: str
    tiling: TiledWeight
    latents: tuple[nn.Parameter, ...]


def plan_tiling(
    layer: nn.Module,
    tensor: str,
    p: int,
    scale: ScaleMode,
    scale_from: ScaleSource,
    min_size: int,
    latent: Latent,
) -> TiledWeight:
    """The parametrization that `tile_tensor` shall give to a layer's tensor; nothing is changed.

    `tile_model` has the arguments.

    Raises:
        TilingError: the tensor cannot be tiled so.
    """
    check_choice("latent", latent, Latent)
    if parametrize.is_parametrized(layer, tensor):
        raise TilingError(f"{tensor} is parametrized already; remove that, or skip the layer")
    weight = getattr(layer, tensor)
    if not isinstance(weight, nn.Parameter):
        raise TilingError(f"{tensor} is no parameter, as if pruned; undo that, or skip the layer")
    if is_lazy(weight):
        raise TilingError(f"{tensor} has no shape yet; run the model on a batch first")
    if not weight.is_floating_point():
        raise TilingError(f"{tensor} is {weight.dtype}; make it float, or skip the layer")
    tiles = p if weight.numel() >= min_size else 1
    return _PARAMETRIZATIONS[latent](weight.shape, tiles, scale, scale_from)


def tile_tensor(layer: nn.Module, tensor: str, tiling: TiledWeight) -> None:
    """Let `tiling` compute a layer's tensor from latent tensors that start from its value."""
    parametrize.register_parametrization(layer, tensor, tiling)


def tiled_tensor(layer: nn.Module, tensor: str = "weight") -> TiledTensor | None:
    """What makes a layer's tensor, or None if that is not a tiling alone."""
    if not parametrize.is_parametrized(layer, tensor):
        return None
    chain = cast("nn.ModuleDict", layer.parametrizations)[tensor]
    tiling, *others = cast("parametrize.ParametrizationList", chain)
    if others or not isinstance(tiling, TiledWeight):
        return None
    return TiledTensor(tensor, tiling, tuple(chain.parameters(recurse=False)))


def tiled_tensors(layer: nn.Module) -> list[TiledTensor]:
    """The tiled tensors that a module itself holds."""
    if not parametrize.is_parametrized(layer):
        return []
    names = cast("nn.ModuleDict", layer.parametrizations).keys()
    return [tiled for tiled in (tiled_tensor(layer, name) for name in names) if tiled]
