"""What compiling for a microcontroller gives: C sources and what there is to know about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Optimization: TypeAlias = Literal["ram", "balanced", "time"]
"""What kernels spend: as little RAM as possible, a little for speed, or what speed asks for."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of the model.

    Attributes:
        name: its name in the model, untrusted.
        identifier: its field in the C structs; a valid, distinct C identifier.
        shape: static extents.
        dtype: element type, as numpy names it.
        step: of an output of dequantised integers, what one of them is worth; else 0. Rounding
            may move such an output by a step.
    """

    name: str
    identifier: str
    shape: tuple[int, ...]
    dtype: str
    step: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Operator:
    """One call of a C function, in the order of execution.

    Attributes:
        function_name: of the C function; several operators may share one.
        layer: what it computes, for tables; untrusted.
        workspace_bytes: what it needs for itself, beside its inputs and outputs.
        live_bytes: of the static workspace that is in use while it runs.
        kernel: how a tiled layer is computed; empty for others.
    """

    function_name: str
    layer: str
    workspace_bytes: int
    live_bytes: int
    kernel: str = ""


@dataclass(frozen=True)
class Sample:
    """Inputs and the outputs that ONNX Runtime gives for them, for a self-test on the device.

    Attributes:
        inputs: arrays in the order of the program's inputs.
        outputs: likewise.
    """

    inputs: tuple[npt.NDArray[Any], ...]
    outputs: tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True)
class Program:
    """A model in C.

    Attributes:
        model_name: for metadata; untrusted.
        core: name of the target.
        inputs, outputs: in the model's order.
        operators: in the order of execution.
        workspace_bytes: of the one static workspace.
        constant_bytes: of all read-only data.
        weight_bytes: of the packed tiles and scales among them; integer layers fold their bias in.
        sources: texts by file name: `tvmgen_default.h`, `default_lib0.c`, `default_lib1.c`.
        sample: for the self-test.
    """

    model_name: str
    core: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    workspace_bytes: int
    constant_bytes: int
    weight_bytes: int
    sources: Mapping[str, str]
    sample: Sample

    @property
    def io_bytes(self) -> int:
        """Bytes of all inputs and outputs, which the caller owns."""
        return sum(tensor.nbytes for tensor in (*self.inputs, *self.outputs))

    @property
    def peak_operator(self) -> Operator | None:
        """The operator during which most of the workspace is in use; None without operators."""
        return max(self.operators, key=lambda operator: operator.live_bytes, default=None)
