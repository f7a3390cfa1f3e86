"""Quantise the activations of a network for cores without an FPU, by ONNX Runtime's own quantiser.

Usage: python quantize.py cnn.onnx cnn.int8.onnx

Activations become int8, one scale and zero point per tensor, calibrated on `test_images.npz`. The
weights become int8 with one scale per tensor; since tiles hold ±1 times a scale, they stay tiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)


class Images(CalibrationDataReader):
    """The shipped images, one at a time, in the shape of a model's input."""

    def __init__(self, model: Path) -> None:
        (value,) = onnx.load(str(model), load_external_data=False).graph.input
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        images = np.load(Path(__file__).parent / "test_images.npz")["images"]
        self._feeds = self._each(value.name, images.reshape(-1, 1, *shape))

    @staticmethod
    def _each(name: str, images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        yield from ({name: image} for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input, or None."""
        return next(self._feeds, None)


def quantize(source: Path, output: Path) -> None:
    """Write `source` in QDQ form."""
    quantize_static(
        source,
        output,
        Images(source),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    quantize(arguments.source, arguments.output)
