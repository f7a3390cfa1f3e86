"""PyTorch layers that learn one binary tile per layer, and their export to ONNX.

Needs the extra `train` (torch, onnxscript). The method is Tiled Bit Networks, Gorbett, Shirazi and
Ray, CIKM 2024, arXiv 2407.12075.
"""

from .export import export
from .freezing import freeze
from .layers import ScaleSource, TiledConv1d, TiledConv2d, TiledConv3d, TiledLayer, TiledLinear
from .tiling import ScaleMode, TilingError, tile_weight

__all__ = [
    "ScaleMode",
    "ScaleSource",
    "TiledConv1d",
    "TiledConv2d",
    "TiledConv3d",
    "TiledLayer",
    "TiledLinear",
    "TilingError",
    "export",
    "freeze",
    "tile_weight",
]
