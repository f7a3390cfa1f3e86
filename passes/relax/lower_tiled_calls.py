"""Tiled call → `call_tir` of a portable kernel that follows the reuse plan."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tbn_compile.passes.relax.epilogue_fusion import rewrite_functions
from tbn_compile.passes.relax.kernels import compute
from tbn_compile.passes.relax.tiled_layer import CONV, GEMM, is_tiled, read_layer

_CALL_TIR = tvm.ir.Op.get("relax.call_tir")
_KERNELS = {GEMM: "tiled_binary_gemm", CONV: "tiled_binary_conv"}


def lower_call(builder: Any, call: Any) -> Any:
    """The call of a tiled operator as a `call_tir`; its kernel joins the builder's module."""
    layer = read_layer(call)
    return builder.call_te(
        lambda *tensors: compute(layer, *tensors),
        *call.args,
        primfunc_name_hint=_KERNELS[call.op.name],
    )


def reshaped(builder: Any, x: Any, shape: list[Any]) -> Any:
    """A tensor by its last axes or as rows: reshaped, unless it has that rank already."""
    if len(shape) == len(x.ty.shape.values):
        return x
    return builder.emit(relax.op.reshape(x, shape))


def count_portable_calls(module: Any) -> int:
    """How many calls of `lower_call`'s kernels a module's Relax functions hold, fused or not."""
    return sum(
        any(kernel in _callee(binding.value) for kernel in _KERNELS.values())
        for _, function in module.functions_items()
        if isinstance(function, relax.Function)
        for block in function.body.blocks
        for binding in block.bindings
    )


def _callee(value: Any) -> str:
    is_call = isinstance(value, relax.Call) and value.op == _CALL_TIR
    return str(value.args[0].name_hint) if is_call else ""


@tvm.transform.module_pass(opt_level=0)
class LowerTiledCalls:
    """Lower tiled calls and nothing else; LegalizeOps does the same among all operators."""

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Lower in every Relax function of an IRModule."""
        return rewrite_functions(_Lowering(module), module)


@relax.expr_functor.mutator
class _Lowering(relax.PyExprMutator):
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        return lower_call(self.builder_, call) if is_tiled(call) else call


for _name in (GEMM, CONV):
    tvm.ir.register_op_attr(_name, "FLegalize", lower_call)
