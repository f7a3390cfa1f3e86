"""Passes over TVM Relax modules, one file each; usable one by one in any pipeline.

The installed package is a plug-in of TVM (entry-point group `tvm.backends`): `import tvm` calls
`register`. Names are imported when they are first used, because a process that has TVM's runtime
alone loads this package too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import tvm  # noqa: F401  # it calls `register`, which must find no module half imported

from tbn_compile.passes.relax.plug_in import register

if TYPE_CHECKING:
    from tbn_compile.passes.relax.fold_batch_norm import FoldBatchNorm
    from tbn_compile.passes.relax.fuse_activation import FuseActivation
    from tbn_compile.passes.relax.fuse_affine import FuseAffine
    from tbn_compile.passes.relax.fuse_max_pool import FuseMaxPool
    from tbn_compile.passes.relax.fuse_quantization import FuseQuantization
    from tbn_compile.passes.relax.fuse_residual import FuseResidual
    from tbn_compile.passes.relax.lower_tiled_calls import LowerTiledCalls
    from tbn_compile.passes.relax.move_dequantize import MoveDequantize
    from tbn_compile.passes.relax.tiled_layer import (
        CONV,
        GEMM,
        Quantization,
        Step,
        TiledLayer,
        is_tiled,
        read_layer,
        tiled_binary_conv,
        tiled_binary_gemm,
    )
    from tbn_compile.passes.relax.widen_sums import WidenSums

_HOME = {
    "CONV": "tiled_layer",
    "GEMM": "tiled_layer",
    "FoldBatchNorm": "fold_batch_norm",
    "FuseActivation": "fuse_activation",
    "FuseAffine": "fuse_affine",
    "FuseMaxPool": "fuse_max_pool",
    "FuseQuantization": "fuse_quantization",
    "FuseResidual": "fuse_residual",
    "LowerTiledCalls": "lower_tiled_calls",
    "MoveDequantize": "move_dequantize",
    "Quantization": "tiled_layer",
    "Step": "tiled_layer",
    "TiledLayer": "tiled_layer",
    "WidenSums": "widen_sums",
    "is_tiled": "tiled_layer",
    "read_layer": "tiled_layer",
    "tiled_binary_conv": "tiled_layer",
    "tiled_binary_gemm": "tiled_layer",
}

__all__ = [
    "CONV",
    "GEMM",
    "FoldBatchNorm",
    "FuseActivation",
    "FuseAffine",
    "FuseMaxPool",
    "FuseQuantization",
    "FuseResidual",
    "LowerTiledCalls",
    "MoveDequantize",
    "Quantization",
    "Step",
    "TiledLayer",
    "WidenSums",
    "is_tiled",
    "read_layer",
    "register",
    "tiled_binary_conv",
    "tiled_binary_gemm",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
