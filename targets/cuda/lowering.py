"""From Relax to calls of scheduled TIR functions for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import tvm
from tvm import relax

from tbn_compile.passes.relax import FoldBatchNorm, FuseActivation, FuseAffine, WidenSums
from tbn_compile.targets import Tuning
from tbn_compile.targets.compiled.legalization import LEGALIZATIONS
from tbn_compile.targets.compiled.tuning import ApplyTuning
from tbn_compile.targets.cuda.compilation import compile_for
from tbn_compile.targets.cuda.fuse_attention import FuseAttention
from tbn_compile.targets.cuda.schedule import ScheduleForGpu
from tbn_compile.targets.cuda.tiled_layers import LowerTiledLayers


def lower(
    module: Any, target: Any, architectures: Sequence[str], tuning: Tuning | None = None
) -> Any:
    """A module whose `main` calls kernels only.

    Residuals stay outside of the tiled layers: they fuse with the normalisation that follows.

    Args:
        module: Relax, with tiled calls.
        target: TVM's description of the GPU, with its host.
        architectures: compute capabilities that the code will run on, see `check_architectures`.
        tuning: schedules to search or to use, or None.
    """
    steps = (
        relax.transform.CanonicalizeBindings(),
        FoldBatchNorm(),
        FuseAffine(),
        FuseActivation(),
        LowerTiledLayers(architectures),
        FuseAttention(),
        WidenSums(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(LEGALIZATIONS),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        ApplyTuning(tuning, partial(compile_for, architectures)),
        ScheduleForGpu(),
    )
    with target:
        return tvm.transform.Sequential(steps)(module)
