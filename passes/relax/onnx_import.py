"""Teach TVM's ONNX frontend the `ai.tbn` operators, when it is first imported and not before."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from math import inf
from types import ModuleType
from typing import Any

from tvm import relax, tirx

from tbn_compile.errors import ModelError, TbnError, clean
from tbn_compile.passes.relax.tiled_layer import Step, tiled_binary_conv, tiled_binary_gemm

_FRONTEND = "tvm.relax.frontend.onnx.onnx_frontend"
_TABLE = "_get_convert_map"


def extend_frontend() -> None:
    """Add the operators to `from_onnx`; harmless when called again.

    The frontend looks operators up by name alone, whatever their domain, and does not read the
    model's functions: ours are converted natively and their bodies are ignored.
    """
    loaded = sys.modules.get(_FRONTEND)
    if loaded is not None:
        _extend(loaded)
    elif not any(isinstance(finder, _FrontendFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FrontendFinder())


class _FrontendFinder(MetaPathFinder):
    """Lets the other finders find the frontend, and extends it as soon as it has been executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _FRONTEND:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ExtendingLoader(spec.loader)
        return spec


@dataclass
class _ExtendingLoader(Loader):
    inner: Loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.inner
        if module.__spec__ is not None:
            module.__spec__.loader = self.inner
        self.inner.exec_module(module)
        _extend(module)


def _extend(frontend: ModuleType) -> None:
    original = getattr(frontend, _TABLE, None)
    if original is None:
        warnings.warn("this TVM's ONNX frontend has no table to add ai.tbn to", stacklevel=2)
        return
    if getattr(original, "has_tbn", False):
        return

    def extended() -> dict[str, Any]:
        return {**original(), **_CONVERTERS}

    extended.has_tbn = True  # type: ignore[attr-defined]
    setattr(frontend, _TABLE, extended)


@dataclass(frozen=True)
class _Converter:
    """What the frontend's table holds for an operator."""

    convert: Callable[[Any, Any, _Attributes], Any]

    def get_converter(self, _opset: int) -> Callable[..., Any]:
        return self._named

    def _named(
        self, builder: Any, inputs: Any, attributes: dict[str, Any], _parameters: Any
    ) -> Any:
        try:
            return self.convert(builder, inputs, _Attributes(attributes))
        except TbnError as error:
            name = attributes.get("tvm_custom", {}).get("name", "")
            raise ModelError(f"node {clean(name, 80)!r}: {error}") from error


def _convert_gemm(builder: Any, inputs: Any, read: _Attributes) -> Any:
    transposed = read.integer("transB", 1)
    if transposed not in (0, 1):
        raise ModelError(f"transB {transposed} must be 0 or 1")
    shape = read.integers("weight_shape")
    if len(shape) != 2:
        raise ModelError(f"weight_shape {shape} must have 2 dimensions")
    x, tile, scale = read.tensors(inputs)
    return tiled_binary_gemm(
        _with_extent(builder, x, -1, shape[1] if transposed else shape[0]),
        tile,
        scale,
        read.epilogue(inputs),
        **read.weight(),
        layout="NK" if transposed else "KN",
    )


def _convert_conv(builder: Any, inputs: Any, read: _Attributes) -> Any:
    shape, groups = read.integers("weight_shape"), read.integer("group", 1)
    if not 3 <= len(shape) <= 5:
        raise ModelError(f"weight_shape {shape} must have 3 to 5 dimensions")
    x, tile, scale = read.tensors(inputs)
    return tiled_binary_conv(
        _with_extent(builder, x, 1, shape[1] * groups),
        tile,
        scale,
        read.epilogue(inputs),
        **read.weight(),
        strides=read.integers("strides", ()),
        dilations=read.integers("dilations", ()),
        pads=read.integers("pads", ()),
        auto_pad=read.text("auto_pad", "NOTSET"),  # type: ignore[arg-type]
        groups=groups,
    )


_CONVERTERS = {
    "TiledBinaryGemm": _Converter(_convert_gemm),
    "TiledBinaryConv": _Converter(_convert_conv),
}


@dataclass(frozen=True)
class _Attributes:
    """A node's attributes as the frontend gives them, checked for their kind.

    Raises:
        ModelError: by each method, if an attribute is missing or of another kind.
    """

    values: dict[str, Any]

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if not isinstance(value, int):
            raise ModelError(f"attribute {name} must be an integer")
        return value

    def integers(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        value = self._value(name, default)
        if not isinstance(value, tuple) or not all(isinstance(each, int) for each in value):
            raise ModelError(f"attribute {name} must be a list of integers")
        return value

    def number(self, name: str, default: float) -> float:
        value = self._value(name, default)
        if not isinstance(value, float):
            raise ModelError(f"attribute {name} must be a number")
        return value

    def text(self, name: str, default: str) -> str:
        value = self._value(name, default.encode())
        if not isinstance(value, bytes):
            raise ModelError(f"attribute {name} must be a string")
        return value.decode(errors="replace")

    def weight(self) -> dict[str, Any]:
        return {
            "weight_shape": self.integers("weight_shape"),
            "tile_length": self.integer("tile_length"),
            "scale_length": self.integer("scale_length"),
            "offset": self.integer("offset", 0),
            "scale_offset": self.integer("scale_offset", 0),
        }

    def tensors(self, inputs: Any) -> tuple[Any, Any, Any]:
        if len(inputs) < 3 or any(value is None for value in inputs[:3]):
            raise ModelError("inputs X, tile and scale are required")
        return inputs[0], inputs[1], inputs[2]

    def epilogue(self, inputs: Any) -> list[Step]:
        bounds = self.number("activation_min", -inf), self.number("activation_max", inf)
        has_bias = len(inputs) > 3 and inputs[3] is not None
        bias = [Step("bias", operand=inputs[3])] if has_bias else []
        return bias if bounds == (-inf, inf) else [*bias, Step("clip", bounds=bounds)]

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name, default)
        if value is None:
            raise ModelError(f"attribute {name} is missing")
        return value


def _with_extent(builder: Any, x: Any, axis: int, extent: int) -> Any:
    """The activation with a symbolic extent pinned to the weight's, checked at run time."""
    x = builder.normalize(x)
    shape = x.ty.shape
    if not isinstance(shape, relax.ShapeExpr) or not shape.values:
        return x
    extents = list(shape.values)
    if axis >= len(extents) or isinstance(extents[axis], tirx.IntImm):
        return x
    extents[axis] = tirx.IntImm("int64", extent)
    return builder.match_cast(x, relax.TensorType(extents, x.ty.dtype))
