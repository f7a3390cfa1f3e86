"""From tiled layers to the plain layers that users ship."""

import copy

from torch import nn
from torch.nn.utils import parametrize

from .layers import TILED_LAYERS
from .parametrization import tiled_tensors

_PLAIN_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    tiled: plain for plain, tiled in TILED_LAYERS.items()
}


def freeze(model: nn.Module) -> nn.Module:
    """Copy of `model` in which every tiled tensor is the dense tensor that it computes.

    Tiled layers become the plain PyTorch layers. Weights are bit-equal, so each stays exactly
    tiled; outputs are those of evaluation, up to PyTorch's choice of a kernel. `model` is left as
    it was; a layer used in several places stays one layer.
    """
    frozen = copy.deepcopy(model)
    for layer in frozen.modules():
        tiled = tiled_tensors(layer)
        if tiled:
            _copy_class(layer)
        for each in tiled:
            parametrize.remove_parametrizations(layer, each.tensor)
        layer.__class__ = _PLAIN_LAYERS.get(type(layer), type(layer))
    return frozen


def _copy_class(layer: nn.Module) -> None:
    """Give a copied layer its own class, from which `remove_parametrizations` takes properties.

    A deep copy shares the class that `parametrize` made for the original.
    """
    shared = type(layer)
    layer.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
