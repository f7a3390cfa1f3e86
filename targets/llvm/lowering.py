"""From Relax to calls of scheduled TIR functions for a CPU."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tbn_compile.passes.relax import (
    FoldBatchNorm,
    FuseActivation,
    FuseAffine,
    FuseResidual,
    WidenSums,
)
from tbn_compile.targets import Tuning
from tbn_compile.targets.compiled.legalization import LEGALIZATIONS
from tbn_compile.targets.compiled.tuning import ApplyTuning
from tbn_compile.targets.llvm.schedule import AddUpRows
from tbn_compile.targets.llvm.tiled_layers import LowerTiledLayers


def lower(
    module: Any, target: Any, lanes: int, permutes: bool, tuning: Tuning | None = None
) -> Any:
    """A module whose `main` calls TIR functions only.

    Args:
        module: Relax, with tiled calls.
        target: TVM's description of the CPU.
        lanes: float32 numbers of its vector registers.
        permutes: whether it can pick a vector's entries.
        tuning: schedules to search or to use, or None.
    """
    steps = (
        relax.transform.CanonicalizeBindings(),
        FoldBatchNorm(),
        FuseAffine(),
        FuseResidual(),
        FuseActivation(),
        LowerTiledLayers(lanes, permutes),
        WidenSums(),
        relax.transform.LegalizeOps(LEGALIZATIONS),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        ApplyTuning(tuning),
        AddUpRows(),
    )
    with target:
        return tvm.transform.Sequential(steps)(module)
