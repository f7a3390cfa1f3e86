"""From Relax to calls of scheduled TIR functions, tiled layers by the kernels for small cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from tbn_compile.passes.relax import (
    FoldBatchNorm,
    FuseActivation,
    FuseAffine,
    FuseMaxPool,
    FuseQuantization,
    FuseResidual,
    MoveDequantize,
    is_tiled,
    read_layer,
)
from tbn_compile.passes.relax.epilogue_fusion import rewrite_functions
from tbn_compile.passes.relax.tiled_layer import element_type
from tbn_compile.targets.mcu.compiler.kernels import tiled_kernel
from tbn_compile.targets.mcu.compiler.kernels.quantize import LowerQuantize
from tbn_compile.targets.mcu.compiler.schedule import ScheduleForSmallCores
from tbn_compile.targets.mcu.cores import Core
from tbn_compile.targets.mcu.program import Optimization
from tbn_compile.targets.relax_import import legalize_take

VIEWS = ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
"""Operators that move no data: the executor gives their result the place of their argument."""

KERNEL = "tbn.kernel"
"""Attribute of a kernel's function: one line that describes it."""
WEIGHTS = "tbn.weights"
"""Attribute of a kernel's function: how many parameters behind the first hold tile and scales."""

_OPAQUE = 8


def lower(
    module: Any,
    core: Core,
    optimization: Optimization,
    on_left: Callable[[str], None] | None = None,
) -> Any:
    """A module whose `main` only calls TIR functions and takes views.

    Args:
        module: Relax, with tiled calls.
        core: what it will run on.
        optimization: what kernels spend.
        on_left: called with the reason, for each tiled layer that computes in float although
            integers come in.

    Raises:
        ModelError: if a tiled layer's weight is no constant.
    """
    steps = (
        MoveDequantize(),
        relax.transform.CanonicalizeBindings(),
        FoldBatchNorm(),
        FuseAffine(),
        FuseResidual(),
        FuseActivation(),
        FuseQuantization(on_left),
        FuseMaxPool(),
        LowerToKernels(core, optimization),
        LowerQuantize(),
        relax.transform.FuseTransposeMatmul(),
        relax.transform.LegalizeOps({"relax.take": legalize_take}, skip_ops=list(VIEWS)),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        ScheduleForSmallCores(optimization),
    )
    with tvm.target.Target("c"):
        return tvm.transform.Sequential(steps)(module)


@tvm.transform.module_pass(opt_level=0)
class LowerToKernels:
    """Tiled call → `call_tir` of a kernel for small cores, with its weight packed to suit.

    Args:
        core: what it will run on.
        optimization: what kernels spend.

    Raises:
        ModelError: if a tile or a scale is no constant.
    """

    def __init__(self, core: Core, optimization: Optimization) -> None:
        self.core = core
        self.optimization = optimization

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Lower in every Relax function of an IRModule."""
        return rewrite_functions(_Lowering(module, self.core, self.optimization), module)


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    def __init__(self, module: Any, core: Core, optimization: Optimization) -> None:
        super().__init__(module)
        self._core = core
        self._optimization = optimization

    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if not is_tiled(call):
            return call
        layer = read_layer(call)
        kernel = tiled_kernel(layer, self._optimization, self._core)
        attributes = {
            "op_pattern": _OPAQUE,
            KERNEL: kernel.description,
            WEIGHTS: len(kernel.constants),
        }
        function: PrimFunc = kernel.function.with_attr(attributes)
        name = self.builder_.add_func(function, kernel.name)
        constants = [relax.const(array, array.dtype.name) for array in kernel.constants]
        result = layer.result_type()
        shape = [int(extent) for extent in result.shape.values]
        return relax.call_tir(
            name,
            [layer.x, *constants, *kernel.operands],
            relax.TensorType(shape, element_type(call)),
        )
