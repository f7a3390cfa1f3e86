"""One-operator models and their float64 oracle: expand the weight, then multiply."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Floats = npt.NDArray[np.float64]

ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


@dataclass
class Layer:
    """A tiled binary layer as the operators see it; `scale` and `bias` are float64.

    `attributes` go onto the node as they are and win over the layer's own; None leaves one out.
    """

    weight_shape: tuple[int, ...]
    bits: npt.NDArray[np.uint8]
    scale: Floats
    scale_length: int
    offset: int = 0
    scale_offset: int = 0
    bias: Floats | None = None
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_conv(self) -> bool:
        return len(self.weight_shape) > 2

    @property
    def tile(self) -> npt.NDArray[np.uint8]:
        return np.packbits(self.bits, bitorder="little")

    def node_attributes(self) -> dict[str, Any]:
        attributes = {
            "weight_shape": list(self.weight_shape),
            "tile_length": len(self.bits),
            "offset": self.offset,
            "scale_length": self.scale_length,
            "scale_offset": self.scale_offset,
            **self.attributes,
        }
        return {name: value for name, value in attributes.items() if value is not None}

    def weight(self) -> Floats:
        """The dense weight, float64, of shape `weight_shape`."""
        i = np.arange(math.prod(self.weight_shape))
        scale = self.scale[(i + self.scale_offset) // self.scale_length % len(self.scale)]
        sign = self.bits[(i + self.offset) % len(self.bits)] * 2.0 - 1.0
        return (scale * sign).reshape(self.weight_shape)

    def expected(self, x: npt.NDArray[Any]) -> Floats:
        """What the operator must give for `x`, in float64."""
        y = _conv(x, self) if self.is_conv else _gemm(x, self)
        low = self.attributes.get("activation_min", -np.inf)
        high = self.attributes.get("activation_max", np.inf)
        return np.clip(y, low, high)


def _gemm(x: npt.NDArray[Any], layer: Layer) -> Floats:
    weight = layer.weight()
    if layer.attributes.get("transB", 1):
        weight = weight.T
    y = x.astype(np.float64) @ weight
    return y if layer.bias is None else y + layer.bias


def _same_pads(size: int, reach: int, stride: int, upper: bool) -> tuple[int, int]:
    total = max(0, (-(-size // stride) - 1) * stride + reach - size)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def _conv(x: npt.NDArray[Any], layer: Layer) -> Floats:
    kernel = layer.weight_shape[2:]
    axes = len(kernel)
    strides = layer.attributes.get("strides", [1] * axes)
    dilations = layer.attributes.get("dilations", [1] * axes)
    group = layer.attributes.get("group", 1)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    flat = layer.attributes.get("pads", [0] * 2 * axes)
    pads = list(zip(flat[:axes], flat[axes:], strict=True))
    auto_pad = layer.attributes.get("auto_pad", "NOTSET")
    if auto_pad.startswith("SAME"):
        pads = [
            _same_pads(size, r, s, auto_pad == "SAME_UPPER")
            for size, r, s in zip(x.shape[2:], reach, strides, strict=True)
        ]
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, reach, axis=tuple(range(2, 2 + axes))
    )
    every_stride = tuple(slice(None, None, s) for s in strides)
    every_dilation = tuple(slice(None, None, d) for d in dilations)
    windows = windows[(slice(None), slice(None), *every_stride, *every_dilation)]
    batch, channels, *spatial = windows.shape[: 2 + axes]
    columns = windows.reshape(batch, group, channels // group, *spatial, math.prod(kernel))
    weight = layer.weight().reshape(group, -1, channels // group, math.prod(kernel))
    y = np.einsum("bgc...t,gnct->bgn...", columns, weight)
    y = y.reshape(batch, layer.weight_shape[0], *spatial)
    return y if layer.bias is None else y + layer.bias.reshape(-1, *[1] * axes)


def make_model(
    layer: Layer,
    dtype: str = "float32",
    *,
    constant: bool = True,
    x_shape: list[int | str] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of one operator; X and Y are float32 and are cast to `dtype` and back inside."""
    op_type = "TiledBinaryConv" if layer.is_conv else "TiledBinaryGemm"
    element = ELEMENT_TYPES[dtype]
    tensors = {"tile": layer.tile, "scale": layer.scale.astype(np.float32)}
    if layer.bias is not None:
        tensors["bias"] = layer.bias.astype(np.float32)
    initializers = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    nodes = [
        helper.make_node(
            op_type,
            [_typed("X", dtype), "tile", *(_typed(n, dtype) for n in tensors if n != "tile")],
            [_typed("Y", dtype)],
            name="layer",
            domain="ai.tbn",
            **layer.node_attributes(),
        )
    ]
    if dtype != "float32":
        casts = [name for name in ("X", *tensors) if name != "tile"]
        nodes = [
            *(helper.make_node("Cast", [n], [_typed(n, dtype)], to=element) for n in casts),
            *nodes,
            helper.make_node("Cast", [_typed("Y", dtype)], ["Y"], to=TensorProto.FLOAT),
        ]
    inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, x_shape)]
    if not constant:
        inputs += [
            helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in initializers
        ]
    graph = helper.make_graph(
        nodes,
        "one_operator",
        inputs,
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        initializers if constant else [],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.tbn", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _typed(name: str, dtype: str) -> str:
    return name if dtype == "float32" else f"{name}_{dtype}"


def make_session(
    model: onnx.ModelProto, library: Path, threads: int = 1
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_layer(
    layer: Layer,
    x: npt.NDArray[np.float32],
    library: Path,
    dtype: str = "float32",
    *,
    constant: bool = True,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    session = make_session(make_model(layer, dtype, constant=constant), library, threads)
    feeds: dict[str, npt.NDArray[Any]] = {"X": x}
    if not constant:
        feeds |= {"tile": layer.tile, "scale": layer.scale.astype(np.float32)}
        if layer.bias is not None:
            feeds["bias"] = layer.bias.astype(np.float32)
    return np.asarray(session.run(None, feeds)[0])


def relative_error(actual: npt.NDArray[Any], expected: Floats) -> float:
    """Largest absolute error relative to the largest expected magnitude."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not expected.size:
        return 0.0
    return float(np.abs(actual - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def largest_sums(layer, x):
    """What each output would be if nothing cancelled: rounding errors are relative to it."""
    positive = replace(
        layer,
        bits=np.ones_like(layer.bits),
        scale=np.abs(layer.scale),
        bias=None if layer.bias is None else np.abs(layer.bias),
        attributes={k: v for k, v in layer.attributes.items() if "activation" not in k},
    )
    return positive.expected(np.abs(x)) + 1e-6
