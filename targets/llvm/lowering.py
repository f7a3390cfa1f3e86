"""From Relax to calls of scheduled TIR functions for a CPU."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, topi

from tbn_compile.passes.relax import (
    FoldBatchNorm,
    FuseActivation,
    FuseAffine,
    FuseResidual,
)
from tbn_compile.targets.llvm.schedule import AddUpRows
from tbn_compile.targets.llvm.tiled_layers import LowerTiledLayers


def lower(module: Any, target: Any, lanes: int, permutes: bool) -> Any:
    """A module whose `main` calls TIR functions only.

    Args:
        module: Relax, with tiled calls.
        target: TVM's description of the CPU.
        lanes: float32 numbers of its vector registers.
        permutes: whether it can pick a vector's entries.
    """
    steps = (
        relax.transform.CanonicalizeBindings(),
        FoldBatchNorm(),
        FuseAffine(),
        FuseResidual(),
        FuseActivation(),
        LowerTiledLayers(lanes, permutes),
        relax.transform.LegalizeOps({"relax.take": _take}),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        AddUpRows(),
    )
    with target:
        return tvm.transform.Sequential(steps)(module)


def _take(builder: Any, call: Any) -> Any:
    """Negative indices count from the end, and none reads outside of the tensor."""
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    return builder.call_te(topi.take, call.args[0], call.args[1], axis, mode="wrap")
