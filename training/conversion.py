"""Tile the layers of any model in place."""

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from .layers import MIN_SIZE, TILED_LAYERS
from .parametrization import Latent, ScaleSource, TiledWeight, plan_tiling, tile_tensor
from .tiling import ScaleMode, TilingError

Tiles = int | Mapping[str, int] | Callable[[str, Tensor], int]
_Model = TypeVar("_Model", bound=nn.Module)

_TILEABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Candidate(NamedTuple):
    """A tensor that can be tiled, or is.

    Attributes:
        layer: the module that holds it.
        tensor: its name there.
        prefix: what stands before the names of the module's tensors in the model's `state_dict`.
    """

    layer: nn.Module
    tensor: str
    prefix: str

    @property
    def parameter_names(self) -> tuple[str, str]:
        """What the tensor, or the scores that make it, are called in the model's `state_dict`."""
        plain, tiled = self.tensor, f"parametrizations.{self.tensor}.original0"
        return self.prefix + plain, self.prefix + tiled

    @property
    def weight(self) -> Tensor:
        """The tensor that the layer computes with."""
        weight: Tensor = getattr(self.layer, self.tensor)
        return weight


def tile_model(
    model: _Model,
    p: Tiles = 4,
    min_size: int = MIN_SIZE,
    scale: ScaleMode = "per_tile",
    scale_from: ScaleSource = "separate",
    latent: Latent = "full",
    skip: Sequence[str] = (),
) -> _Model:
    """Give the layers of `model` tiled weights, in place, and return it.

    Linear, Conv1d, Conv2d and Conv3d layers, their subclasses, and the projections of
    MultiheadAttention are tiled: W[i*q + j] = alpha_i * t[j] with t in {-1, +1}^q and q = L / p
    (`tiling.py` has all equations; the paper's section 3). Latent tensors start from the present
    weights, trained or not. They are new parameters: make optimiser, DDP and EMA afterwards.

    Layers are named as in `model.named_modules()`, the projections of an attention `attn` are
    `attn.in_proj` (or `attn.q_proj`, `attn.k_proj`, `attn.v_proj`) and `attn.out_proj`. A pattern,
    in which `*` and `?` are wild, names the layers that it matches and all below them.

    Args:
        model: any module.
        p: number of tiles of each weight; or patterns with their p, the first that matches counts;
            or a function of a layer's name and weight.
        min_size: weights with fewer elements (the paper's lambda) get one tile and one scale; they
            are still binary.
        scale: "per_tile" for p scales, alpha_i = mean|A| over tile i; "per_layer" for one.
        scale_from: "separate" if A is a second tensor, trained with the scores; "weight" if A is
            the scores.
        latent: "full" trains the L scores; "aggregate" trains only their sums over the tiles, L / p
            numbers, and the scales. The gradient that reaches an aggregate is the sum over its p
            positions; `TiledAggregate` says what follows.
        skip: patterns of layers to leave alone.

    Raises:
        TilingError: a pattern names no layer, or a layer cannot be tiled as asked: p does not
            divide its weight, or the weight is no float, parametrized or shared with another layer.
            The message names the layer; `model` is left as it was.
    """
    found = candidates(model)
    if isinstance(skip, str):
        raise TilingError(f"skip is {skip!r}; use a list of patterns")
    check_patterns("skip", skip, found)
    if isinstance(p, Mapping):
        check_patterns("p", p, found)
    planned = []
    for name, candidate in found.items():
        if any(_matches(pattern, name) for pattern in skip):
            continue
        layer, tensor, _ = candidate
        with naming(name):
            tiles = tiles_of(p, name, candidate)
            tiling = plan_tiling(layer, tensor, tiles, scale, scale_from, min_size, latent)
            check_owners(model, layer.get_parameter(tensor))
        planned.append((candidate, tiling))
    for candidate, tiling in planned:
        apply_tiling(candidate, tiling)
    return model


def candidates(model: nn.Module) -> dict[str, Candidate]:
    """Every tensor of `model` that can be tiled or is, by the name of its layer or projection."""
    found = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, _TILEABLE):
            found[path] = Candidate(module, "weight", prefix)
        if isinstance(module, nn.MultiheadAttention):
            for tensor in _PROJECTIONS:
                if getattr(module, tensor) is not None:
                    name = prefix + tensor.removesuffix("_weight")
                    found[name] = Candidate(module, tensor, prefix)
    return found


def apply_tiling(candidate: Candidate, tiling: TiledWeight) -> None:
    """Tile one tensor; a plain layer becomes its tiled form."""
    layer = candidate.layer
    layer.__class__ = TILED_LAYERS.get(type(layer), type(layer))
    tile_tensor(layer, candidate.tensor, tiling)


def check_patterns(option: str, patterns: Collection[str], names: Collection[str]) -> None:
    """Raise TilingError if a pattern of an option names none of the layers."""
    for pattern in patterns:
        if not any(_matches(pattern, name) for name in names):
            close = get_close_matches(pattern, names, n=3, cutoff=0) or ["none"]
            raise TilingError(
                f"{option} names {pattern!r}, which is no Linear, Conv or attention layer of the "
                f"model; the closest are: {', '.join(close)}"
            )


@contextmanager
def naming(layer: str) -> Generator[None]:
    """Put the layer's name before the message of a TilingError."""
    try:
        yield
    except TilingError as error:
        raise TilingError(f"layer {layer!r}: {error}") from None


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def tiles_of(p: Tiles, name: str, candidate: Candidate) -> int:
    """The p that is asked for a layer; `check_tiling` refuses what is no number."""
    if callable(p):
        return p(name, candidate.weight)
    if not isinstance(p, Mapping):
        return p
    for pattern, tiles in p.items():
        if _matches(pattern, name):
            return tiles
    raise TilingError("no pattern of p matches; add one, such as '*' for all others")


def check_owners(model: nn.Module, weight: Tensor) -> None:
    """Raise TilingError if two layers hold the same parameter: only one could be tiled."""
    owners = [
        f"{name}.{tensor}".removeprefix(".")
        for name, module in model.named_modules()
        for tensor, parameter in module.named_parameters(recurse=False)
        if parameter is weight
    ]
    if len(owners) > 1:
        raise TilingError(f"its weight is shared by {' and '.join(owners)}; untie them, or skip it")
