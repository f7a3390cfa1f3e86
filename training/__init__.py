"""PyTorch layers that learn one binary tile per layer, and their export to ONNX.

Needs the extra `train` (torch, onnxscript). The method is Tiled Bit Networks, Gorbett, Shirazi and
Ray, CIKM 2024, arXiv 2407.12075. `tile_model` tiles any model; docs/training.md is the guide.
"""

from .checkpoints import load_checkpoint
from .conversion import tile_model
from .export import ExportError, export
from .freezing import freeze
from .layers import TiledConv1d, TiledConv2d, TiledConv3d, TiledLayer, TiledLinear
from .parametrization import Latent, ScaleSource, TiledAggregate, TiledWeight
from .tiling import ScaleMode, TilingError, tile_weight

__all__ = [
    "ExportError",
    "Latent",
    "ScaleMode",
    "ScaleSource",
    "TiledAggregate",
    "TiledConv1d",
    "TiledConv2d",
    "TiledConv3d",
    "TiledLayer",
    "TiledLinear",
    "TiledWeight",
    "TilingError",
    "export",
    "freeze",
    "load_checkpoint",
    "tile_model",
    "tile_weight",
]
