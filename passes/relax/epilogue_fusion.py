"""Walk a function and let a rule fuse what follows a tiled call into its epilogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import tvm
from tvm import relax

from tbn_compile.passes.relax.tiled_layer import TiledLayer, constant_of, is_tiled, read_layer

Rule: TypeAlias = Callable[[Any, int, TiledLayer], TiledLayer | None]
"""(follower, which of its arguments is the tiled result, layer) to the fused layer, or None."""


def fuse_followers(function: Any, rule: Rule, *, after_rounding: bool = False) -> Any:
    """Replace calls that alone use a tiled result by the fused layer, wherever `rule` gives one.

    A call that gives a tuple, as batch_norm does, is replaced where only its first item is used.

    Args:
        function: a Relax function.
        rule: see `Rule`; called in the order of execution, so that chains fuse in one walk.
        after_rounding: whether it may also follow the rounding of a result to integers.
    """
    function = relax.analysis.remove_all_unused(function)
    fused = _Fuser(rule, _count_uses(function), after_rounding).visit_expr(function)
    return relax.analysis.remove_all_unused(fused)


def rewrite_functions(mutator: Any, module: Any) -> Any:
    """A module with every Relax function rewritten, and what the mutator's builder added.

    Args:
        mutator: a `PyExprMutator` made with the module.
        module: the IRModule.
    """
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            mutator.builder_.update_func(name, mutator.visit_expr(function))
    return mutator.builder_.get()


def operator_name(call: Any) -> str:
    """The name of a call's operator; empty if it calls something else or is no call."""
    is_call = isinstance(call, relax.Call) and isinstance(call.op, tvm.ir.Op)
    return str(call.op.name) if is_call else ""


def bound_value(mutator: Any, expression: Any) -> Any:
    """What a variable is bound to, so far; None if to nothing. Other expressions stay."""
    is_variable = isinstance(expression, relax.Var)
    return mutator.lookup_binding(expression) if is_variable else expression


def with_constants(mutator: Any, call: Any) -> Any:
    """The call with constants in the place of variables bound to them."""
    values = [bound_value(mutator, argument) for argument in call.args]
    arguments = [
        argument if constant_of(value) is None else value
        for argument, value in zip(call.args, values, strict=True)
    ]
    return relax.Call(call.op, arguments, call.attrs)


@relax.expr_functor.mutator
class _Fuser(relax.PyExprMutator):
    def __init__(self, rule: Rule, uses: Counter[Any], after_rounding: bool) -> None:
        super().__init__()
        self._rule = rule
        self._after_rounding = after_rounding
        self._uses = uses

    def visit_call_(self, call: Any) -> Any:
        sole = [self._uses.get(argument) == 1 for argument in call.args]
        call = self.visit_expr_post_order(call)
        fused = None if isinstance(call.ty, relax.TupleType) else self._fused(call, sole)
        return call if fused is None else fused

    def visit_tuple_getitem_(self, item: Any) -> Any:
        sole = self._uses.get(item.tuple_value) == 1
        item = self.visit_expr_post_order(item)
        call = bound_value(self, item.tuple_value)
        if item.index != 0 or not sole or not isinstance(call, relax.Call):
            return item
        fused = self._fused(call, [self._uses.get(argument) == 1 for argument in call.args])
        return item if fused is None else fused

    def _fused(self, call: Any, sole: list[bool]) -> Any:
        for position, argument in enumerate(call.args):
            source = bound_value(self, argument)
            if not sole[position] or not is_tiled(source):
                continue
            layer = read_layer(with_constants(self, source))
            if layer.pool or (layer.output_quantization and not self._after_rounding):
                continue
            fused = self._rule(with_constants(self, call), position, layer)
            if fused is not None:
                return self.builder_.normalize(fused.call())
        return None


def _count_uses(function: Any) -> Counter[Any]:
    counter = _UseCounter()
    counter.visit_expr(function)
    return counter.uses


@relax.expr_functor.visitor
class _UseCounter(relax.PyExprVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.uses: Counter[Any] = Counter()

    def visit_var_(self, variable: Any) -> None:
        self.uses[variable] += 1

    def visit_dataflow_var_(self, variable: Any) -> None:
        self.uses[variable] += 1
