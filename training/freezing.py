"""From tiled layers to the plain layers that users ship."""

import copy

from torch import nn

from .layers import TiledLayer


def freeze(model: nn.Module) -> nn.Module:
    """Copy of `model` with every tiled layer replaced by its plain PyTorch layer.

    The outputs stay bit-equal and each weight stays exactly tiled. `model` is left as it was; a
    layer used in several places stays one layer.
    """
    if isinstance(model, TiledLayer):
        return model.to_dense()
    frozen = copy.deepcopy(model)
    dense: dict[nn.Module, nn.Module] = {}
    for name, layer in _named_modules(frozen):
        if isinstance(layer, TiledLayer):
            frozen.set_submodule(name, dense.setdefault(layer, layer.to_dense()))
    return frozen


def _named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every path to every module, shared ones once per path."""
    return list(model.named_modules(remove_duplicate=False))  # pyright: ignore[reportUnknownArgumentType]
