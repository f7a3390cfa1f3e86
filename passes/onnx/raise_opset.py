"""Convert a model to an operator set in which the bodies of `ai.tbn` can be written."""

from __future__ import annotations

import logging

import onnx_ir as ir

from tbn_compile.errors import ModelError
from tbn_compile.operators import MIN_OPSET

_TARGET = 18


class RaiseOpsetPass(ir.passes.InPlacePass):
    """Raise a default operator set older than 15 to 18; newer models are left as they are."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert with ONNX's own converter.

        Raises:
            ModelError: if the converter does not know an operator of the model.
        """
        present = model.opset_imports.get("", 1)
        if present >= MIN_OPSET:
            return ir.passes.PassResult(model, modified=False)
        _convert(model)
        if model.opset_imports.get("", 1) < MIN_OPSET:
            raise ModelError(
                f"operator set {present} is too old and cannot be converted; "
                f"export the model with operator set {MIN_OPSET} or later"
            )
        return ir.passes.PassResult(model, modified=True)


def _convert(model: ir.Model) -> None:
    """Convert in place, without the converter's own messages: what fails is told by the pass."""
    from onnxscript.version_converter import (  # noqa: PLC0415  # slow to import, seldom used
        ConvertVersionPass,
    )

    logger = logging.getLogger("onnxscript.version_converter")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        ConvertVersionPass(_TARGET, fallback=True)(model)
    finally:
        logger.setLevel(level)
