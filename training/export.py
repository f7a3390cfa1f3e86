"""Export to a self-contained ONNX file that says nothing about the machine that wrote it."""

import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import onnx_ir as ir
import torch
from torch import Tensor, nn


def export(
    model: nn.Module,
    path: str | Path,
    *examples: Tensor,
    input_names: Sequence[str] = ("input",),
    output_names: Sequence[str] = ("output",),
) -> None:
    """Write `model` to one ONNX file whose inputs share a dynamic first dimension, "batch".

    Tiled layers are written as the training-time graph, latent tensors included; pass
    `freeze(model)` to write their dense weights. The same model gives the same bytes, with no
    stack traces or paths. Exporter: `torch.onnx.export(dynamo=True)`.

    Args:
        model: module in evaluation mode.
        path: file to write; an existing file is replaced.
        examples: one tensor per input, of the dtype and shape the model takes; the size of the
            first dimension does not matter.
        input_names: names of the graph's inputs, one per example.
        output_names: names of the graph's outputs.

    Raises:
        ValueError: the model is in training mode, or computes with a fixed first dimension.
    """
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode; call .eval() before export")
    # The exporter takes a first dimension of 1 for a constant.
    batches = tuple(torch.cat([example, example]) for example in examples)
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
            model,
            batches,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in batches),
            input_names=input_names,
            output_names=output_names,
            verbose=False,
        )
    written = cast("torch.onnx.ONNXProgram", program).model
    _check_batch(model, written.graph.inputs)
    _strip_metadata(written)
    ir.save(written, path)  # pyright: ignore[reportUnknownMemberType]


@contextmanager
def _quiet() -> Generator[None]:
    """Hide the exporter's remarks about packages it could also have used."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used")
            yield
    finally:
        logger.setLevel(level)


def _check_batch(model: nn.Module, inputs: Sequence[ir.Value]) -> None:
    """Refuse a graph that the exporter made for one batch size only."""
    for value in inputs:
        if value.shape is not None and isinstance(value.shape[0], int):
            raise ValueError(
                f"{type(model).__name__} computes with a fixed first dimension of input "
                f"{value.name!r}; reshape with -1 in its place"
            )


def _strip_metadata(model: ir.Model) -> None:
    """Remove stack traces, module paths and doc strings."""
    graph = model.graph
    nodes = list(graph.all_nodes())
    values = [*graph.inputs, *graph.initializers.values()]
    values.extend(output for node in nodes for output in node.outputs)
    parts: list[ir.Model | ir.Graph | ir.Node | ir.Value] = [model, graph, *nodes, *values]
    for part in parts:
        part.doc_string = None
        part.metadata_props.clear()
