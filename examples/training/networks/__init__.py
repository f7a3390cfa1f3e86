"""The architectures of the recipes, one file each: plain PyTorch, tiled from outside.

`NETWORKS[name]` is called with the options of a recipe's table `[network]`.
"""

from collections.abc import Callable

from torch import nn

from .convmixer import convmixer
from .forecaster import Forecaster
from .mixer import Mixer
from .mlp import mlp
from .pointnet import PointNetClassifier, PointNetSegmenter
from .resnet import resnet18, resnet50
from .swin import SwinTransformer
from .vgg import vgg_small
from .vit import VisionTransformer

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg_small": vgg_small,
    "vit": VisionTransformer,
    "swin": SwinTransformer,
    "mixer": Mixer,
    "convmixer": convmixer,
    "pointnet_classification": PointNetClassifier,
    "pointnet_segmentation": PointNetSegmenter,
    "forecaster": Forecaster,
}
