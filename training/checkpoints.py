"""Load checkpoints of Tiled Bit Networks that others have trained or packed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tbn_compile.tile import unpack_bits

from .conversion import (
    Candidate,
    Tiles,
    apply_tiling,
    candidates,
    check_owners,
    check_patterns,
    naming,
    tiles_of,
)
from .layers import MIN_SIZE
from .parametrization import ScaleSource, TiledWeight, plan_tiling, tiled_tensor
from .tiling import ScaleMode, TilingError

_WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
_EXTRA_STATE = "_extra_state"
"""How the name of what `get_extra_state` of a module gives ends; it may be anything."""


@dataclass(frozen=True)
class _Import:
    """What one layer of a checkpoint becomes.

    Attributes:
        candidate: the layer.
        tiling: its parametrization, new or present.
        latents: the latent tensors' values.
    """

    candidate: Candidate
    tiling: TiledWeight
    latents: tuple[Tensor, ...]


def load_checkpoint(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    p: Tiles | None = None,
    min_size: int = MIN_SIZE,
) -> None:
    """Load another trainer's Tiled Bit Network into `model`, which is plain or tiled already.

    A layer `fc` of the checkpoint may hold

    * `fc.scores` and `fc.weight`, the authors' naming, both of the weight's shape: the scores make
      the tile, the weight makes the scales. Without `fc.weight` the scores make both;
    * `fc.tile` and `fc.alphas`: the tile of q = L / p elements, as uint8[ceil(q / 8)] bits, least
      significant first and 1 for +1, or as [q] of +1 and -1; and float[1] or [p] scales. The layer
      then trains its aggregate, see `TiledAggregate`.

    Plain layers that the checkpoint tiles become tiled; scales are per tile unless `model` says
    otherwise or there is one. Other tensors keep their names. A prefix `module.` or `_orig_mod.`
    of all names is dropped.

    Args:
        model: the architecture.
        state_dict: the checkpoint's tensors.
        p: number of tiles, as in `tile_model`. None takes it from the tiled layers of `model`, or
            from the tile and its scales; scores alone do not tell it.
        min_size: a weight with fewer elements has one tile, where p is given.

    Raises:
        TilingError: a tensor is missing, unknown, or not as expected; or p cannot be inferred or
            does not fit. The message names the layer; `model` is left as it was.
    """
    _check_values(state_dict)
    state = _unwrap(state_dict, model)
    found = candidates(model)
    if isinstance(p, Mapping):
        check_patterns("p", p, found)
    imports = []
    for name, candidate in found.items():
        tensors = _take(state, f"{name}." if name else "", candidate)
        if not tensors:
            continue
        with naming(name):
            asked = _asked(p, name, candidate, min_size)
            imports.append(_plan_import(candidate, tensors, asked))
            if _tiling(candidate) is None:
                check_owners(model, candidate.weight)
    _check_rest(model, imports, state)
    for each in imports:
        if _tiling(each.candidate) is None:
            apply_tiling(each.candidate, each.tiling)
        state.update(zip(_latent_names(each.candidate), each.latents, strict=False))
    model.load_state_dict(state)


def _unwrap(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state without wrappers' prefixes that the model's own names lack."""
    state = dict(state_dict)
    while _wrapped(state) and not _wrapped(model.state_dict()):
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return state


def _wrapped(names: Collection[str]) -> bool:
    return bool(names) and all(name.startswith(_WRAPPERS) for name in names)


def _check_values(state: Mapping[str, object]) -> None:
    """Raise TilingError unless every value is a dense tensor with numbers, or a layer's extra."""
    for name, value in state.items():
        if not isinstance(name, str):
            raise TilingError(f"the checkpoint's name {name!r} is no string")
        if name.endswith(_EXTRA_STATE):
            continue
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
            raise TilingError(f"the checkpoint's {name!r} is no dense tensor; convert it")


def _check_numbers(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or not tensor.isfinite().all():
        raise TilingError(f"{name} must be finite floating point numbers")


def _take(state: dict[str, Tensor], prefix: str, candidate: Candidate) -> dict[str, Tensor]:
    """Move a layer's tensors out of `state`; none if it is plain there, or in our own form."""
    names = [name for name in ("scores", "weight", "tile", "alphas") if prefix + name in state]
    if names == ["weight"] and _tiling(candidate) is None:
        return {}
    return {name: state.pop(prefix + name) for name in names}


def _asked(p: Tiles | None, name: str, candidate: Candidate, min_size: int) -> int | None:
    """The p that the caller wants of a layer, or that it has already."""
    tiling = _tiling(candidate)
    present = tiling.p if tiling else None
    if p is None:
        return present
    asked = tiles_of(p, name, candidate) if candidate.weight.numel() >= min_size else 1
    if present not in (None, asked):
        small = ", as it is below min_size" if asked == 1 else ""
        raise TilingError(
            f"p = {asked} is asked{small}; the model's layer has p = {present}; omit p"
        )
    return asked


def _plan_import(candidate: Candidate, tensors: dict[str, Tensor], p: int | None) -> _Import:
    if tensors.keys() == {"tile", "alphas"}:
        return _plan_packed(candidate, tensors["tile"], tensors["alphas"], p)
    if tensors.keys() <= {"scores", "weight"}:
        return _plan_scores(candidate, tuple(tensors.values()), p)
    raise TilingError(
        f"the checkpoint holds {', '.join(tensors)}; expected scores and weight, or tile and alphas"
    )


def _plan_scores(candidate: Candidate, latents: tuple[Tensor, ...], p: int | None) -> _Import:
    for tensor in latents:
        _check_numbers("scores and weight", tensor)
        if tensor.shape != candidate.weight.shape:
            raise TilingError(
                f"scores or weight has shape {list(tensor.shape)}; "
                f"expected {list(candidate.weight.shape)}"
            )
    if p is None:
        raise TilingError("scores do not tell p; pass p, or call tile_model first")
    scale_from: ScaleSource = "weight" if len(latents) == 1 else "separate"
    tiling = _tiling(candidate) or plan_tiling(
        candidate.layer, candidate.tensor, p, "per_tile", scale_from, 0, "full"
    )
    if (tiling.latent, tiling.scale_from) != ("full", scale_from):
        raise TilingError(
            f"the checkpoint needs scale_from={scale_from!r}, latent='full'; the model's layer "
            f"has scale_from={tiling.scale_from!r}, latent={tiling.latent!r}"
        )
    return _Import(candidate, tiling, latents)


def _plan_packed(candidate: Candidate, tile: Tensor, alphas: Tensor, p: int | None) -> _Import:
    _check_numbers("alphas", alphas)
    if not (alphas > 0).all():
        raise TilingError("alphas must be positive numbers; expected mean magnitudes")
    count = alphas.numel()
    p = _infer_p(candidate.weight.numel(), tile, count, p)
    scale: ScaleMode = "per_layer" if count == 1 else "per_tile"
    tiling = _tiling(candidate) or plan_tiling(
        candidate.layer, candidate.tensor, p, scale, "separate", 0, "aggregate"
    )
    if (tiling.latent, tiling.scale_count) != ("aggregate", count):
        raise TilingError(
            f"the checkpoint needs latent='aggregate' and {count} scales; the model's layer has "
            f"latent={tiling.latent!r} and {tiling.scale_count}"
        )
    return _Import(candidate, tiling, (_signs(tile, tiling.tile_length), alphas.reshape(-1)))


def _infer_p(size: int, tile: Tensor, scales: int, p: int | None) -> int:
    """The only p with which a tile and its scales make a weight of `size` elements."""
    length = tile.numel()
    packed = tile.dtype == torch.uint8
    lengths = range(8 * length - 7, 8 * length + 1) if packed else [length]
    fitting = [size // q for q in lengths if q > 0 and size % q == 0]
    fitting = [each for each in fitting if scales in (1, each) and p in (None, each)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        choices = " or ".join(str(each) for each in fitting)
        raise TilingError(f"the tile fits p = {choices}; pass p")
    unit = "bytes" if packed else "elements"
    raise TilingError(
        f"a tile of {length} {unit} with {scales} alphas is none of a weight of {size} elements"
        + (f" with p = {p}" if p else "")
        + "; expected L / p bits as uint8, or L / p signs, and 1 or p alphas"
    )


def _signs(tile: Tensor, length: int) -> Tensor:
    """The tile as float[q] of +1 and -1."""
    if tile.dtype == torch.uint8:
        bits = unpack_bits(tile.reshape(-1).cpu().numpy(), length)
        return torch.where(torch.from_numpy(bits), 1.0, -1.0)
    if tile.dtype == torch.bool or not (tile.abs() == 1).all():
        raise TilingError("the tile holds other values than +1 and -1; pack bits as uint8")
    return tile.reshape(-1).float()


def _tiling(candidate: Candidate) -> TiledWeight | None:
    tiled = tiled_tensor(candidate.layer, candidate.tensor)
    return tiled.tiling if tiled else None


def _latent_names(candidate: Candidate) -> list[str]:
    chain = f"{candidate.prefix}parametrizations.{candidate.tensor}"
    return [f"{chain}.original0", f"{chain}.original1"]


def _check_rest(model: nn.Module, imports: list[_Import], state: Mapping[str, Tensor]) -> None:
    """Raise TilingError unless `state` holds exactly the tensors that no import brings."""
    expected = model.state_dict()
    for candidate in (each.candidate for each in imports):
        for name in (candidate.prefix + candidate.tensor, *_latent_names(candidate)):
            expected.pop(name, None)
    for name in state:
        if name not in expected:
            raise TilingError(f"the checkpoint holds {name!r}, which the model lacks")
    for name, tensor in expected.items():
        if name not in state:
            raise TilingError(f"the checkpoint lacks {name!r} of the model{_hint(name)}")
        if name.endswith(_EXTRA_STATE):
            continue
        if tensor.shape != state[name].shape:
            shapes = f"{list(state[name].shape)}; expected {list(tensor.shape)}"
            raise TilingError(f"{name!r} of the checkpoint has shape {shapes}")


def _hint(name: str) -> str:
    """What a latent tensor may be called in the checkpoint."""
    if ".parametrizations." not in f".{name}":
        return ""
    return ", which is tiled; expected scores and weight, or tile and alphas"
