"""The `tbn.tiled_binary_gemm` and `tbn.tiled_binary_conv` operators of Relax: make and read calls.

A call's arguments are `(x, tile, scale, *operands)`; its attributes (a `DictAttrs`) are

* the weight: `weight_shape`, `tile_length`, `offset`, `scale_length`, `scale_offset`, `layout`;
* the reuse plan: `distinct_rows`, `distinct_columns`, `segments`;
* the epilogue: `epilogue`, the names of its steps in order, and `bounds`, two numbers for each
  "clip" among them. "bias" and "residual" take one operand each, in order;
* of a convolution: `strides`, `dilations`, `pads`, `auto_pad`, `groups`, as in ONNX Conv;
* of integer activations: `input_scale`, `input_zero_point`, and where the result is integer too
  `output_scale`, `output_zero_point`, `output_dtype`.

Both are ordinary operators: pure, with a type and a legalisation, matched by `is_op(GEMM)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, prod
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import tvm
from tvm import relax, tirx

from tbn_compile.errors import ModelError
from tbn_compile.tile import MAX_ELEMENTS, Floats, Layout, ReusePlan, TiledBinaryWeight

GEMM = "tbn.tiled_binary_gemm"
CONV = "tbn.tiled_binary_conv"
StepKind: TypeAlias = Literal["bias", "residual", "clip", "gelu", "gelu_tanh"]
AutoPad: TypeAlias = Literal["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]
_LARGEST = 2**40
_ELEMENT_TYPES = ("float32", "float16", "bfloat16")
_INTEGER_TYPES = ("int8", "uint8")
_LARGEST_SUM = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Step:
    """One step of an epilogue, applied to float32.

    Attributes:
        kind: "bias" and "residual" add the operand, "clip" clamps (NaN passes through).
        operand: Relax expression of "bias", T[N], or "residual", of the result's own type.
        bounds: lower and upper bound of "clip".
    """

    kind: StepKind
    operand: Any = None
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Quantization:
    """How the integers of a tensor stand for numbers: number = scale · (integer - zero_point).

    Attributes:
        scale: of the whole tensor, a positive float32.
        zero_point: in the range of the type.
        dtype: "int8" or "uint8".
    """

    scale: float
    zero_point: int
    dtype: str

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest integer of the type."""
        limits = np.iinfo(self.dtype)
        return int(limits.min), int(limits.max)

    @property
    def largest(self) -> int:
        """The largest magnitude of integer - zero_point."""
        return max(abs(limit - self.zero_point) for limit in self.limits)

    def check(self) -> None:
        """Refuse what cannot be computed with.

        Raises:
            ModelError: if a field is out of its range.
        """
        if self.dtype not in _INTEGER_TYPES:
            raise ModelError(f"integers are {self.dtype}; use one of {_INTEGER_TYPES}")
        low, high = self.limits
        if not low <= self.zero_point <= high:
            raise ModelError(f"zero point {self.zero_point} must be {low} to {high}")
        if not np.finfo(np.float32).tiny <= np.float32(self.scale) < np.inf:
            raise ModelError(f"quantization scale {self.scale} must be a positive float32")


@dataclass(frozen=True)
class Window:
    """What ONNX Conv calls strides, dilations, pads (begins, then ends), auto_pad and group."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: AutoPad = "NOTSET"
    groups: int = 1

    def check(self, weight: TiledBinaryWeight) -> None:
        """Refuse what no convolution can mean.

        Raises:
            ModelError: if a length or value does not fit the weight.
        """
        axes = len(weight.shape) - 2
        if not 1 <= axes <= 3 or weight.layout != "NK":
            raise ModelError(f"weight shape {weight.shape} must be [N, channels/group, k1..k3]")
        for name, values, count, least in (
            ("strides", self.strides, axes, 1),
            ("dilations", self.dilations, axes, 1),
            ("pads", self.pads, 2 * axes, 0),
        ):
            if len(values) != count or not all(least <= v < _LARGEST for v in values):
                raise ModelError(f"{name} {values} must be {count} values from {least} to 2^40")
        if self.auto_pad not in get_args(AutoPad):
            raise ModelError(f"auto_pad {self.auto_pad!r} must be one of {get_args(AutoPad)}")
        if self.auto_pad != "NOTSET" and any(self.pads):
            raise ModelError("pads and auto_pad cannot both be given; leave out one of them")
        if self.groups < 1 or weight.outputs % self.groups:
            raise ModelError(f"group {self.groups} must divide the {weight.outputs} outputs")

    def reach(self, kernel: Sequence[int]) -> list[int]:
        """How many inputs one output spans along each spatial axis."""
        return [d * (k - 1) + 1 for d, k in zip(self.dilations, kernel, strict=True)]

    def place(self, extents: Sequence[Any], kernel: Sequence[int]) -> list[tuple[Any, Any]]:
        """For each spatial axis the padding before it and the extent of the result.

        Args:
            extents: the input's spatial extents, integers or symbolic.
            kernel: the weight's spatial extents.
        """
        places = []
        for axis, (extent, reach) in enumerate(zip(extents, self.reach(kernel), strict=True)):
            stride = self.strides[axis]
            if self.auto_pad.startswith("SAME"):
                result = (extent + stride - 1) // stride
                total = tirx.max((result - 1) * stride + reach - extent, tirx.IntImm("int64", 0))
                before = total // 2 if self.auto_pad == "SAME_UPPER" else (total + 1) // 2
            else:
                before = self.pads[axis]
                padded = extent + before + self.pads[axis + len(kernel)]
                result = (padded - reach) // stride + 1
            places.append((_simplify(before), _simplify(result)))
        return places


@dataclass(frozen=True, eq=False)
class TiledLayer:
    """A call of a tiled operator, taken apart.

    Attributes:
        x: activation T[..., K], or T[batch, channels, d1..dn] of a convolution; of integers where
            `input_quantization` says so.
        tile: uint8[ceil(tile_length / 8)].
        scale: T[C].
        weight: what tile and scale mean; its bits are zeros, and so are its scales unless `scale`
            is a constant.
        plan: which rows and columns are computed once.
        window: of a convolution; None for a Gemm.
        epilogue: the steps after the scale.
        input_quantization: what the integers of x stand for, or None.
        output_quantization: what the integers of the result stand for, or None; only with integer
            activations. The result is rounded to them, half to even, after the epilogue.
        pool: of a convolution, the extents of windows that lie side by side; the greatest element
            of each is the result, the last step of all. Empty: every element is.
    """

    x: Any
    tile: Any
    scale: Any
    weight: TiledBinaryWeight
    plan: ReusePlan
    window: Window | None
    epilogue: tuple[Step, ...]
    input_quantization: Quantization | None = None
    output_quantization: Quantization | None = None
    pool: tuple[int, ...] = ()

    @property
    def element_type(self) -> str:
        """T of the scale, the bias, and of activation and result where they are not quantized."""
        return element_type(self.scale)

    @property
    def scale_follows_rows(self) -> bool:
        """Whether one scale serves all weights behind an output."""
        return self.weight.scale.size == 1 or self.weight._scale_follows_rows()

    @property
    def not_integer(self) -> str | None:
        """Why the sums cannot be formed from integers, or None: they can."""
        if self.element_type != "float32":
            return f"its scales are {self.element_type}, not float32"
        if not self.scale_follows_rows and self.plan.segments == 1:
            return "its scale changes inside rows"
        if self.weight.inputs * (2**8 - 1) > _LARGEST_SUM:
            return f"the sum of {self.weight.inputs} integers may exceed 32 bits"
        return None

    @property
    def channel_axis(self) -> int:
        """The axis of the result that counts outputs."""
        return 1 if self.window else len(self.x.ty.shape.values) - 1

    def call(self) -> Any:
        """The Relax call."""
        attributes: dict[str, Any] = {
            "weight_shape": list(self.weight.shape),
            "tile_length": self.weight.tile_length,
            "offset": self.weight.offset,
            "scale_length": self.weight.scale_length,
            "scale_offset": self.weight.scale_offset,
            "layout": self.weight.layout,
            "distinct_rows": self.plan.distinct_rows,
            "distinct_columns": self.plan.distinct_columns,
            "segments": self.plan.segments,
            "epilogue": [step.kind for step in self.epilogue],
            "bounds": [bound for step in self.epilogue for bound in step.bounds or ()],
        }
        if self.window:
            attributes |= {
                "strides": list(self.window.strides),
                "dilations": list(self.window.dilations),
                "pads": list(self.window.pads),
                "auto_pad": self.window.auto_pad,
                "groups": self.window.groups,
            }
        if self.input_quantization:
            attributes |= {
                "input_scale": self.input_quantization.scale,
                "input_zero_point": self.input_quantization.zero_point,
            }
        if self.output_quantization:
            attributes |= {
                "output_scale": self.output_quantization.scale,
                "output_zero_point": self.output_quantization.zero_point,
                "output_dtype": self.output_quantization.dtype,
            }
        if self.pool:
            attributes["pool"] = list(self.pool)
        operands = [step.operand for step in self.epilogue if step.operand is not None]
        return relax.Call(
            tvm.ir.Op.get(CONV if self.window else GEMM),
            [self.x, self.tile, self.scale, *operands],
            tvm.ir.make_node("ir.DictAttrs", **attributes),
        )

    def with_step(self, step: Step) -> TiledLayer:
        """The layer with one more step at the end of its epilogue."""
        return replace_layer(self, epilogue=(*self.epilogue, step))

    def result_type(self) -> Any:
        """The type of Y: T[..., N] or T[batch, N, o1..on], or of integers."""
        output = self.output_quantization
        return relax.TensorType(self.result_shape(), output.dtype if output else self.element_type)

    def result_shape(self) -> list[Any]:
        """The extents of Y."""
        shape = self.epilogue_shape()
        pooled = [extent // size for extent, size in zip(shape[2:], self.pool, strict=False)]
        return [*shape[:2], *pooled] if self.pool else shape

    def epilogue_shape(self) -> list[Any]:
        """The extents of what the epilogue gives, before it is pooled."""
        shape = list(self.x.ty.shape.values)
        if self.window is None:
            return [*shape[:-1], self.weight.outputs]
        places = self.window.place(shape[2:], self.weight.shape[2:])
        return [shape[0], self.weight.outputs, *(extent for _, extent in places)]


def tiled_binary_gemm(
    x: Any,
    tile: Any,
    scale: Any,
    epilogue: Sequence[Step] = (),
    *,
    weight_shape: Sequence[int],
    tile_length: int,
    scale_length: int,
    offset: int = 0,
    scale_offset: int = 0,
    layout: Layout = "NK",
    input_quantization: Quantization | None = None,
    output_quantization: Quantization | None = None,
) -> Any:
    """A call Y = epilogue(X · Wᵀ) with W a repeated binary tile; see `TiledBinaryWeight`.

    Args:
        x: T[..., K], rank 1 or more, T float32, float16 or bfloat16; or integers.
        tile: uint8[ceil(tile_length / 8)].
        scale: T[C].
        epilogue: what follows the product.
        weight_shape: (N, K) in layout "NK", (K, N) in "KN".
        tile_length: in elements.
        scale_length: in elements.
        offset: in elements of the tile.
        scale_offset: in elements of the cycle of scales.
        layout: "NK" or "KN".
        input_quantization: what the integers of x stand for, if it holds integers.
        output_quantization: what the integers of the result shall stand for, if it shall hold any.

    Returns:
        The Relax call, T[..., N] or integers.

    Raises:
        TileError: if the arguments describe no weight.
        ModelError: if the activation or the epilogue does not fit the weight.
    """
    fields = {
        "weight_shape": weight_shape,
        "tile_length": tile_length,
        "scale_length": scale_length,
        "offset": offset,
        "scale_offset": scale_offset,
        "layout": layout,
    }
    weight = _describe(tile, scale, fields)
    layer = TiledLayer(
        x,
        tile,
        scale,
        weight,
        weight.plan_reuse(),
        None,
        tuple(epilogue),
        input_quantization,
        output_quantization,
    )
    return _checked(layer).call()


def tiled_binary_conv(
    x: Any,
    tile: Any,
    scale: Any,
    epilogue: Sequence[Step] = (),
    *,
    weight_shape: Sequence[int],
    tile_length: int,
    scale_length: int,
    offset: int = 0,
    scale_offset: int = 0,
    strides: Sequence[int] = (),
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    auto_pad: AutoPad = "NOTSET",
    groups: int = 1,
    input_quantization: Quantization | None = None,
    output_quantization: Quantization | None = None,
    pool: Sequence[int] = (),
) -> Any:
    """A call Y = epilogue(Conv(X, W)) with W a repeated binary tile, 1 to 3 spatial axes.

    Args:
        x: T[batch, channels, d1..dn], T float32, float16 or bfloat16; or integers.
        tile: uint8[ceil(tile_length / 8)].
        scale: T[C].
        epilogue: what follows the product.
        weight_shape: (N, channels / groups, k1..kn).
        tile_length: in elements.
        scale_length: in elements.
        offset: in elements of the tile.
        scale_offset: in elements of the cycle of scales.
        strides: as in ONNX Conv; ones if empty.
        dilations: as in ONNX Conv; ones if empty.
        pads: as in ONNX Conv, begins and then ends; zeros if empty.
        auto_pad: as in ONNX Conv.
        groups: as `group` in ONNX Conv.
        input_quantization: what the integers of x stand for, if it holds integers.
        output_quantization: what the integers of the result shall stand for, if it shall hold any.
        pool: extents of windows side by side, of which only the greatest elements are wanted.

    Returns:
        The Relax call, T[batch, N, o1..on] or integers.

    Raises:
        TileError: if the arguments describe no weight.
        ModelError: if the activation, the window or the epilogue does not fit the weight.
    """
    fields = {
        "weight_shape": weight_shape,
        "tile_length": tile_length,
        "scale_length": scale_length,
        "offset": offset,
        "scale_offset": scale_offset,
        "layout": "NK",
    }
    weight = _describe(tile, scale, fields)
    ones = [1] * (len(weight.shape) - 2)
    window = Window(
        tuple(strides or ones),
        tuple(dilations or ones),
        tuple(pads or [0] * 2 * len(ones)),
        auto_pad,
        groups,
    )
    window.check(weight)
    plan = weight.plan_reuse(groups, foldable=False)
    layer = TiledLayer(
        x,
        tile,
        scale,
        weight,
        plan,
        window,
        tuple(epilogue),
        input_quantization,
        output_quantization,
        tuple(pool),
    )
    return _checked(layer).call()


def is_tiled(expression: Any) -> bool:
    """Whether an expression is a call of a tiled operator."""
    if not isinstance(expression, relax.Call) or not isinstance(expression.op, tvm.ir.Op):
        return False
    return expression.op.name in (GEMM, CONV)


def read_layer(call: Any) -> TiledLayer:
    """Take a call of a tiled operator apart."""
    attributes = call.attrs
    x, tile, scale, *operands = call.args
    weight = _describe(tile, scale, attributes)
    window = _read_window(attributes) if call.op.name == CONV else None
    groups = window.groups if window else 1
    plan = ReusePlan(
        rows=weight.outputs // groups,
        columns=weight.inputs,
        distinct_rows=int(attributes["distinct_rows"]),
        distinct_columns=int(attributes["distinct_columns"]),
        segments=int(attributes["segments"]),
        groups=groups,
    )
    epilogue = _read_epilogue(attributes["epilogue"], operands, attributes["bounds"])
    pool = tuple(map(int, attributes["pool"])) if "pool" in attributes else ()
    layer = TiledLayer(x, tile, scale, weight, plan, window, epilogue, pool=pool)
    return _with_quantization(layer, attributes)


def replace_layer(
    layer: TiledLayer,
    *,
    weight: TiledBinaryWeight | None = None,
    epilogue: tuple[Step, ...] | None = None,
) -> TiledLayer:
    """The layer with another epilogue, or with another constant scale for the same tile."""
    changed = layer if epilogue is None else replace(layer, epilogue=epilogue)
    if weight is None:
        return changed
    scale = relax.const(weight.scale, layer.element_type)
    plan = weight.plan_reuse(layer.plan.groups, foldable=layer.window is None)
    return replace(changed, weight=weight, scale=scale, plan=plan)


def constant_of(expression: Any) -> Floats | None:
    """The value of a constant, or None for anything else."""
    if not isinstance(expression, tvm.ir.GenericConst):
        return None
    return expression.value.numpy()


def element_type(expression: Any) -> str:
    """The element type of a tensor expression, as numpy names it."""
    return str(expression.ty.dtype)


def _describe(tile: Any, scale: Any, fields: Any) -> TiledBinaryWeight:
    """The weight with zeros for bits: only their number is known before the model runs."""
    known = constant_of(scale)
    return TiledBinaryWeight(
        bits=_zeros(tile),
        shape=tuple(int(extent) for extent in fields["weight_shape"]),
        tile_length=int(fields["tile_length"]),
        scale=_zeros(scale) if known is None else known,
        scale_length=int(fields["scale_length"]),
        offset=int(fields["offset"]),
        scale_offset=int(fields["scale_offset"]),
        layout=str(fields["layout"]),  # type: ignore[arg-type]
    )


def _checked(layer: TiledLayer) -> TiledLayer:
    weight = layer.weight
    _check_types(layer)
    shape = layer.x.ty.shape
    if not isinstance(shape, relax.ShapeExpr):
        raise ModelError("X has no known rank; give it a shape, which may hold symbolic dimensions")
    extents, axis = list(shape.values), 1 if layer.window else -1
    needed = weight.shape[1] * layer.window.groups if layer.window else weight.inputs
    if len(extents) < 1 or (layer.window and len(extents) != len(weight.shape)):
        raise ModelError(f"X of {len(extents)} dimensions does not fit weight shape {weight.shape}")
    if not _is_static(extents[axis]) or int(extents[axis]) != needed:
        raise ModelError(f"X has {_text(extents[axis])} inputs; the weight takes {needed}")
    if layer.pool and (not layer.window or len(layer.pool) != len(weight.shape) - 2):
        raise ModelError(f"pool {layer.pool} does not fit weight shape {weight.shape}")
    if not all(1 <= size < _LARGEST for size in layer.pool):
        raise ModelError(f"pool {layer.pool} must hold values from 1 to 2^40")
    result = layer.epilogue_shape()
    known = [int(extent) for extent in result if _is_static(extent)]
    if prod(known) > MAX_ELEMENTS:
        raise ModelError(f"the result of {known} elements exceeds {MAX_ELEMENTS}")
    if layer.window and any(_is_static(e) and int(e) < 1 for e in result[2:]):
        shown = ", ".join(map(_text, extents))
        raise ModelError(f"the window of weight {weight.shape} exceeds X of shape [{shown}]")
    for step in layer.epilogue:
        _check_step(step, layer)
    return layer


def _check_types(layer: TiledLayer) -> None:
    given, expected = element_type(layer.x), layer.element_type
    if layer.input_quantization:
        layer.input_quantization.check()
        if layer.not_integer:
            raise ModelError(f"integers do not fit this layer: {layer.not_integer}")
        expected = layer.input_quantization.dtype
    if layer.element_type not in _ELEMENT_TYPES or given != expected:
        raise ModelError(f"X is {given} and scale is {layer.element_type}; use one float type")
    if layer.output_quantization:
        layer.output_quantization.check()
        if not layer.input_quantization:
            raise ModelError("a result of integers needs an X of integers")


def _check_step(step: Step, layer: TiledLayer) -> None:
    if step.kind not in get_args(StepKind):
        raise ModelError(f"epilogue step {step.kind!r} must be one of {get_args(StepKind)}")
    if step.kind == "clip":
        lower, upper = step.bounds or (np.nan, np.nan)
        if isnan(lower) or isnan(upper) or lower > upper:
            raise ModelError(f"clip bounds {step.bounds} must be ordered numbers")
    expected = {
        "bias": relax.TensorType([layer.weight.outputs], layer.element_type),
        "residual": relax.TensorType(layer.epilogue_shape(), layer.element_type),
    }.get(step.kind)
    if expected is not None and step.operand.ty != expected:
        raise ModelError(f"{step.kind} is {step.operand.ty}; it must be {expected}")


def _read_window(attributes: Any) -> Window:
    return Window(
        strides=tuple(map(int, attributes["strides"])),
        dilations=tuple(map(int, attributes["dilations"])),
        pads=tuple(map(int, attributes["pads"])),
        auto_pad=str(attributes["auto_pad"]),  # type: ignore[arg-type]
        groups=int(attributes["groups"]),
    )


def _with_quantization(layer: TiledLayer, attributes: Any) -> TiledLayer:
    if "input_scale" not in attributes:
        return layer
    scale, zero_point = float(attributes["input_scale"]), int(attributes["input_zero_point"])
    layer = replace(
        layer, input_quantization=Quantization(scale, zero_point, element_type(layer.x))
    )
    if "output_scale" not in attributes:
        return layer
    scale, zero_point = float(attributes["output_scale"]), int(attributes["output_zero_point"])
    output = Quantization(scale, zero_point, str(attributes["output_dtype"]))
    return replace(layer, output_quantization=output)


def _read_epilogue(
    kinds: Sequence[Any], operands: Sequence[Any], bounds: Sequence[float]
) -> tuple[Step, ...]:
    remaining, pairs = iter(operands), iter(bounds)
    steps = []
    for kind in map(str, kinds):
        if kind == "clip":
            steps.append(Step("clip", bounds=(float(next(pairs)), float(next(pairs)))))
        elif kind in ("bias", "residual"):
            steps.append(Step(kind, operand=next(remaining)))  # type: ignore[arg-type]
        else:
            steps.append(Step(kind))  # type: ignore[arg-type]
    return tuple(steps)


def _zeros(expression: Any) -> Floats:
    """Zeros of a tensor's shape and type, in no memory."""
    import ml_dtypes  # noqa: PLC0415

    shape, name = expression.ty.shape, element_type(expression)
    if not isinstance(shape, relax.ShapeExpr) or not all(map(_is_static, shape.values)):
        raise ModelError("tile and scale must have static shapes")
    kind = np.dtype(getattr(ml_dtypes, name, name))
    return np.broadcast_to(np.zeros((), kind), [int(extent) for extent in shape.values])


def _is_static(extent: Any) -> bool:
    return isinstance(extent, tirx.IntImm)


def _text(extent: Any) -> str:
    return str(int(extent)) if _is_static(extent) else str(extent)


def _simplify(extent: Any) -> Any:
    return tvm.sym.Analyzer().simplify(tirx.convert(extent))


def _infer_type(call: Any, _builder: Any) -> Any:
    return read_layer(call).result_type()


for _name in (GEMM, CONV):
    tvm.ir.register_op_attr(_name, "FInferType", _infer_type)
    tvm.ir.register_op_attr(_name, "FPurity", value=True)
