"""What the compiler did to a model, layer by layer: plain data with a versioned JSON form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from tbn_compile.passes.onnx.finding import Layer
from tbn_compile.passes.onnx.tiled_nodes import read_weight

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerReport:
    """One layer. Sizes are in bytes; multiply-adds are for one inference, dynamic axes as 1.

    Attributes:
        status: "lowered" or "left alone".
        reason: why it was left alone, else None.
        tiles: p, how many tiles the weight holds, else None.
        scaling: what shares a scale: "layer", "row", "tile" or "block".
        plan: what is computed once: "rows", "columns", "blocks", or "expand" for nothing.
        original_bytes: the dense weight.
        stored_bytes: the tile and the scales. What several layers share, a weight or a tile,
            counts once, for the first of them.
    """

    name: str
    operator: str
    weight: str
    shape: tuple[int, ...]
    dtype: str
    status: str
    reason: str | None
    tiles: float | None
    tile_length: int | None
    offset: int | None
    layout: str | None
    scaling: str | None
    plan: str | None
    original_bytes: int
    stored_bytes: int
    dense_multiply_adds: int
    multiply_adds: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight of the layer, scales included."""
        return 8 * self.stored_bytes / max(1, prod(self.shape))


@dataclass(frozen=True)
class ModelReport:
    """A model before and after lowering.

    Attributes:
        model: the file's name.
        target: the target's name, or None if the model was only inspected.
        artifact: the written file's name, or None.
        original_file_bytes: the file and its external data.
        artifact_bytes: likewise for the artifact, or None.
        phases: seconds of each phase, in order.
        details: what the target tells about the artifact, JSON-ready.
        details_lines: the same for a terminal.
    """

    model: str
    layers: tuple[LayerReport, ...]
    original_file_bytes: int
    target: str | None = None
    artifact: str | None = None
    artifact_bytes: int | None = None
    phases: dict[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    details_lines: tuple[str, ...] = ()

    @property
    def lowered(self) -> tuple[LayerReport, ...]:
        """The layers that became `ai.tbn` operators."""
        return tuple(layer for layer in self.layers if layer.status == "lowered")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data, with `schema_version`."""
        layers = [
            {**dataclasses.asdict(layer), "bits_per_weight": round(layer.bits_per_weight, 6)}
            for layer in self.layers
        ]
        totals = {
            key: sum(getattr(layer, key) for layer in self.layers)
            for key in ("original_bytes", "stored_bytes", "dense_multiply_adds", "multiply_adds")
        }
        fields = dataclasses.asdict(self)
        del fields["details_lines"]
        return {
            "schema_version": SCHEMA_VERSION,
            **fields,
            "layers": layers,
            "totals": totals,
        }


def layer_reports(layers: Iterable[Layer]) -> tuple[LayerReport, ...]:
    """Describe every layer that the passes saw, from the nodes as they are now."""
    shared: set[ir.Value | None] = set()
    return tuple(_layer_report(layer, shared) for layer in layers)


def _layer_report(layer: Layer, shared: set[ir.Value | None]) -> LayerReport:
    original = 0 if layer.value in shared else layer.weight_bytes
    shared.add(layer.value)
    node = layer.tiled
    if node is None:
        positions = _positions(layer.node.outputs[0], layer.operator == "Conv")
        dense = prod(layer.shape) * positions if layer.shape else 0
        return LayerReport(
            layer.name, layer.operator, layer.weight, layer.shape, layer.dtype, "left alone",
            layer.reason, None, None, None, None, None, None, original, original, dense, dense,
        )  # fmt: skip
    weight = read_weight(node)
    is_convolution = len(weight.shape) > 2
    groups = int(node.attributes.get_int("group", 1) or 1)
    plan = weight.plan_reuse(groups, foldable=not is_convolution)
    positions = _positions(node.outputs[0], is_convolution)
    stored = weight.stored_bytes - (weight.bits.nbytes if node.inputs[1] in shared else 0)
    shared.add(node.inputs[1])
    return LayerReport(
        name=layer.name,
        operator=layer.operator,
        weight=layer.weight,
        shape=layer.shape,
        dtype=layer.dtype,
        status="lowered",
        reason=None,
        tiles=round(weight.repeats, 4),
        tile_length=weight.tile_length,
        offset=weight.offset,
        layout=weight.layout,
        scaling=weight.scaling,
        plan=plan.kind,
        original_bytes=original,
        stored_bytes=stored,
        dense_multiply_adds=plan.dense_multiply_adds * positions,
        multiply_adds=plan.multiply_adds * positions,
    )


def _positions(result: ir.Value, is_convolution: bool) -> int:
    """How often the weight is applied: rows of input or output pixels; unknown axes count 1."""
    if result.shape is None:
        return 1
    channel = 1 if is_convolution else len(result.shape) - 1
    known = [extent for axis, extent in enumerate(result.shape) if axis != channel]
    return int(np.prod([extent for extent in known if isinstance(extent, int)] or [1]))
