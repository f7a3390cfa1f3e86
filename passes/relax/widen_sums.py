"""Sums of 16-bit numbers → sums in float32, rounded once: what ONNX Runtime's kernels do too."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tbn_compile.passes.relax.epilogue_fusion import operator_name, rewrite_functions

_NARROW = ("float16", "bfloat16")
_PRODUCTS = {
    "relax.matmul": relax.op.matmul,
    "relax.nn.conv1d": relax.op.nn.conv1d,
    "relax.nn.conv2d": relax.op.nn.conv2d,
    "relax.nn.conv3d": relax.op.nn.conv3d,
}
"""They can give another type than they take, so that their operands stay narrow in memory."""
_WINDOW = (
    "strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "out_layout"
)  # fmt: skip
_REDUCTIONS = frozenset(
    f"relax.{name}"
    for name in (
        "mean", "prod", "std", "sum", "variance", "nn.softmax", "nn.log_softmax", "nn.avg_pool1d",
        "nn.avg_pool2d", "nn.avg_pool3d", "nn.adaptive_avg_pool1d", "nn.adaptive_avg_pool2d",
        "nn.adaptive_avg_pool3d",
    )
)  # fmt: skip


@tvm.transform.module_pass(opt_level=0)
class WidenSums:
    """Let products, pools and reductions of float16 and bfloat16 add up in float32."""

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Rewrite every Relax function of an IRModule."""
        return rewrite_functions(_Widening(module), module)


@relax.expr_functor.mutator
class _Widening(relax.PyExprMutator):
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        name = operator_name(call)
        if name not in _PRODUCTS and name not in _REDUCTIONS:
            return call
        dtype = str(call.args[0].ty.dtype)
        if dtype not in _NARROW or str(call.ty.dtype) != dtype:
            return call
        wide = self._product(name, call) if name in _PRODUCTS else self._reduction(call)
        return relax.op.astype(self.builder_.emit(wide), dtype)

    def _product(self, name: str, call: Any) -> Any:
        fields = _WINDOW if name != "relax.matmul" else ()
        attributes = {field: getattr(call.attrs, field) for field in fields}
        return _PRODUCTS[name](*call.args, **attributes, out_dtype="float32")

    def _reduction(self, call: Any) -> Any:
        wide = self.builder_.emit(relax.op.astype(call.args[0], "float32"))
        return relax.Call(call.op, [wide, *call.args[1:]], call.attrs)
