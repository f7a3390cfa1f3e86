"""matmul → softmax → matmul becomes one call of the attention kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from tbn_compile.passes.relax.affine_view import AffineView, has_shape, known_scalar, view_of
from tbn_compile.passes.relax.epilogue_fusion import operator_name
from tbn_compile.targets.compiled.scheduling import FINISHED_KERNEL
from tbn_compile.targets.cuda.attention import (
    LARGEST_HEAD,
    AttentionProblem,
    attention_function,
    is_readable,
    is_regular,
)
from tbn_compile.targets.cuda.attention_sources import ELEMENT_BYTES

_SCALES = (2.0**-100, 2.0**100)
"""Between these a scale is a float32, and a score relative to another keeps its order."""


@tvm.transform.module_pass(opt_level=0)
class FuseAttention:
    """softmax(scale · query · keyᵀ + mask) · value → `call_tir` of one CUDA kernel.

    The scale may be factors and divisors of the product or of its operands, the mask any operand
    of an addition. Reshapes, transpositions and slices before become strides in the kernel, and so
    does one permute_dims after, if it alone uses the result. Run it before `LegalizeOps`.
    """

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Fuse in every Relax function of an IRModule."""
        fuser = _Fuser(module)
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                fuser.fuse(name, function)
        return fuser.builder_.get()


@relax.expr_functor.mutator
class _Fuser(relax.PyExprMutator):
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._problems: dict[Any, AttentionProblem] = {}

    def fuse(self, name: Any, function: Any) -> None:
        self._problems = _Matcher(function).problems()
        if self._problems:
            fused = relax.analysis.remove_all_unused(self.visit_expr(function))
            self.builder_.update_func(name, fused)

    def visit_call_(self, call: Any) -> Any:
        problem = self._problems.get(call)
        if problem is None:
            return self.visit_expr_post_order(call)
        function = attention_function(problem).with_attr(FINISHED_KERNEL)
        name = self.builder_.add_func(function, "attention")
        *inputs, output = (view.root for view in problem.views)
        arguments = [self._visited(root) for root in inputs]
        return relax.call_tir(name, [*arguments, *problem.symbols()], output.ty)

    def _visited(self, root: Any) -> Any:
        visited = self.visit_expr(root)
        return self.builder_.emit(visited) if isinstance(visited, relax.Call) else visited


class _Matcher:
    """What a function computes that is attention."""

    def __init__(self, function: Any) -> None:
        self._values = relax.analysis.get_var2val(function)
        self._users = defaultdict(list)
        for variable, value in self._values.items():
            for used in relax.analysis.free_vars(value):
                self._users[used].append(variable)

    def problems(self) -> dict[Any, AttentionProblem]:
        """The calls that a kernel replaces: the last matmul, or the permute_dims after it."""
        found = {}
        for variable, call in self._values.items():
            if operator_name(call) != "relax.matmul":
                continue
            last, order = self._last_call(variable, call)
            problem = self._problem(variable, call, order)
            if problem is not None:
                found[last] = problem
        return found

    def _value_of(self, expression: Any) -> Any:
        while isinstance(expression, relax.Var) and expression in self._values:
            expression = self._values[expression]
        return expression

    def _sole_user(self, variable: Any) -> Any:
        """The variable bound to what alone uses another, or None."""
        users = self._users[variable] if isinstance(variable, relax.DataflowVar) else []
        return users[0] if len(users) == 1 else None

    def _last_call(self, variable: Any, call: Any) -> tuple[Any, list[int]]:
        """What writes the result, and the axes of the result in the order of what is written."""
        rank = len(call.ty.shape.values) if has_shape(call) else 0
        user = self._value_of(self._sole_user(variable))
        if operator_name(user) != "relax.permute_dims" or user.attrs.axes is None:
            return call, list(range(rank))
        order = [int(axis) % rank for axis in user.attrs.axes]
        return (user, order) if order[-1] == rank - 1 else (call, list(range(rank)))

    def _problem(self, variable: Any, call: Any, order: list[int]) -> AttentionProblem | None:
        """Attention whose last matmul this is, if the kernel can compute it."""
        weights, values = call.args
        scores = self._softmax_operand(weights, variable)
        found = None if scores is None else self._scores(scores)
        if found is None:
            return None
        product, scale, mask = found
        query, query_scale = self._scaled(product.args[0])
        transposed_key, key_scale = self._scaled(product.args[1])
        scale *= query_scale * key_scale
        served = _serves(query, transposed_key, values, call)
        if not served or not _SCALES[0] < scale < _SCALES[1]:
            return None
        *batch, queries, head = call.ty.shape.values
        keys = weights.ty.shape.values[-1]
        views = [
            self._view(query, [*batch, queries, head], is_readable),
            self._view(_transposed(transposed_key), [*batch, keys, head], is_readable),
            self._view(values, [*batch, keys, head], is_readable),
        ]
        if mask is not None:
            views.append(self._view(mask, [*batch, queries, keys], is_regular))
        found_views = tuple(view for view in views if view is not None)
        if len(found_views) < len(views):
            return None
        return AttentionProblem(found_views, _written(call, order), scale)

    def _softmax_operand(self, weights: Any, user: Any) -> Any:
        """What weights are the softmax of, along the last axis and for one user; else None."""
        softmax = self._value_of(weights)
        if operator_name(softmax) != "relax.nn.softmax" or not has_shape(weights):
            return None
        along_last = int(softmax.attrs.axis) in (-1, len(weights.ty.shape.values) - 1)
        return softmax.args[0] if along_last and user.same_as(self._sole_user(weights)) else None

    def _scores(self, expression: Any) -> tuple[Any, float, Any] | None:
        """The matmul that gives them, its factor, and what is added or None."""
        value = self._value_of(expression)
        candidates = [(expression, None)]
        if operator_name(value) == "relax.add":
            candidates = [(value.args[0], value.args[1]), (value.args[1], value.args[0])]
        for candidate, mask in candidates:
            product, scale = self._scaled(candidate)
            matmul = self._value_of(product)
            if operator_name(matmul) != "relax.matmul":
                continue
            if tvm_ffi.structural_equal(product.ty, expression.ty):
                return matmul, scale, mask
        return None

    def _scaled(self, expression: Any) -> tuple[Any, float]:
        """What is multiplied and divided by numbers, and by how much in all."""
        scale = 1.0
        factored = self._factored(expression)
        while factored is not None:
            expression, factor = factored
            scale *= factor
            factored = self._factored(expression)
        return expression, scale

    def _factored(self, expression: Any) -> tuple[Any, float] | None:
        value = self._value_of(expression)
        name = operator_name(value)
        if name not in ("relax.multiply", "relax.divide"):
            return None
        for operand, other in (value.args, reversed(value.args))[: 2 - (name == "relax.divide")]:
            number = known_scalar(other, self._value_of)
            if not number or not tvm_ffi.structural_equal(operand.ty, expression.ty):
                continue
            return operand, float(number) if name == "relax.multiply" else 1 / float(number)
        return None

    def _view(
        self, expression: Any, shape: list[Any], suits: Callable[[AffineView], bool]
    ) -> AffineView | None:
        """The farthest view that suits, or else of the tensor itself; None if it has other axes."""
        for view in (view_of(expression, self._value_of), AffineView.of(expression)):
            repeated = view.broadcast(shape)
            if repeated is not None and suits(repeated):
                return repeated
        return None


def _serves(query: Any, transposed_key: Any, values: Any, result: Any) -> bool:
    """Whether these are matrices, or more axes, of a type and head size that the kernel takes."""
    matrices = (query, transposed_key, values, result)
    if not all(has_shape(each) and len(each.ty.shape.values) >= 2 for each in matrices):
        return False
    columns = [each.ty.shape.values[-1] for each in (query, values, result)]
    heads = {_known(extent) for extent in (*columns, transposed_key.ty.shape.values[-2])}
    dtypes = {str(each.ty.dtype) for each in matrices}
    return (
        len(dtypes) == len(heads) == 1
        and dtypes <= set(ELEMENT_BYTES)
        and 1 <= heads.pop() <= LARGEST_HEAD
    )


def _known(extent: Any) -> int:
    return int(extent) if isinstance(extent, tirx.IntImm) else 0


def _transposed(matrices: Any) -> Any:
    *axes, rows, columns = range(len(matrices.ty.shape.values))
    return relax.BlockBuilder().normalize(relax.op.permute_dims(matrices, [*axes, columns, rows]))


def _written(result: Any, order: list[int]) -> AffineView:
    """The result as a view of the tensor that has its axes in this order."""
    shape = [result.ty.shape.values[axis] for axis in order]
    root = relax.Var("output", relax.TensorType(shape, result.ty.dtype))
    return AffineView.of(root).permuted([order.index(axis) for axis in range(len(order))])
