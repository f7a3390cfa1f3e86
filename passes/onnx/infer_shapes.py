"""Infer shapes without letting a graph's claims decide how much memory that takes."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes import common

from tbn_compile.errors import ModelError, clean

_LONGEST_VECTOR = 2**20


class InferShapesPass(ir.passes.InPlacePass):
    """Infer shapes; those that depend on computed shapes only where that is safe.

    ONNX's data propagation holds one entry per element of every vector of known length, and a
    product of shapes can make that any length.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Annotate values of the graph and its subgraphs.

        Raises:
            ModelError: if the model's shapes contradict each other.
        """
        modified = _infer(model, with_data=False)
        if _is_safe(model):
            modified |= _infer(model, with_data=True)
        return ir.passes.PassResult(model, modified)


class _Failure(logging.Handler):
    """Keeps the error that onnx_ir logs where it could raise."""

    error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.error = record.exc_info[1] if record.exc_info else None


def _infer(model: ir.Model, *, with_data: bool) -> bool:
    logger, failure = logging.getLogger(common.ShapeInferencePass.__module__), _Failure()
    propagates, logger.propagate = logger.propagate, False
    level = logger.level
    logger.setLevel(logging.DEBUG)  # a quiet parent must not hide the failure
    logger.addHandler(failure)
    try:
        result = common.ShapeInferencePass(data_prop=with_data)(model)
    finally:
        logger.removeHandler(failure)
        logger.propagate = propagates
        logger.setLevel(level)
    if failure.error is not None:
        first = next((line for line in str(failure.error).splitlines() if line.strip()), "")
        raise ModelError(f"shapes contradict each other: {clean(first, 250)}")
    return result.modified


def _is_safe(model: ir.Model) -> bool:
    for graph in model.graphs():
        for node in graph:
            multiplies = node.op_type == "Mul" and node.outputs[0].dtype == ir.DataType.INT64
            if multiplies or any(map(_is_long_vector, node.outputs)):
                return False
        if any(map(_is_long_vector, (*graph.inputs, *graph.initializers.values()))):
            return False
    return True


def _is_long_vector(value: ir.Value) -> bool:
    shape = value.shape
    if shape is None or len(shape) != 1:
        return False
    extent = shape[0]
    return isinstance(extent, int) and extent > _LONGEST_VECTOR
