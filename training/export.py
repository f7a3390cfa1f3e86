"""Export to a self-contained ONNX file whose tiles the compiler finds.

The file says nothing about the machine that wrote it.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import cast

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tbn_compile.compiler import inspect_model
from tbn_compile.detection import SMALLEST_GAIN, NotTiled, detect_tile
from tbn_compile.errors import TbnError
from tbn_compile.reports import ModelReport

from .conversion import candidates

_LARGEST_BATCH = 2**31 - 1
"""PyTorch 2.7 refuses attention whose batch may be 2**63 - 1, its infinity."""


class ExportError(TbnError, ValueError):
    """A model cannot be exported, or its graph does not lower; the message says what to do."""


def export(
    model: nn.Module,
    path: str | Path,
    *examples: Tensor,
    input_names: Sequence[str] = ("input",),
    output_names: Sequence[str] = ("output",),
) -> ModelReport:
    """Write `model` to one ONNX file whose inputs share a dynamic first dimension, "batch".

    Tiled layers are written as the training-time graph, latent tensors included; pass
    `freeze(model)` to write their dense weights. The same model gives the same bytes, with no
    stack traces or paths. Exporter: `torch.onnx.export(dynamo=True)`. The compiler then inspects
    the file: every weight that is a tile in PyTorch must be one in the graph.

    Args:
        model: module in evaluation mode.
        path: file to write; an existing file is replaced.
        examples: one tensor per input, of the dtype and shape the model takes; the size of the
            first dimension does not matter.
        input_names: names of the graph's inputs, one per example.
        output_names: names of the graph's outputs.

    Returns:
        What the compiler would lower, layer by layer, as `tbn_compile.inspect_model`.

    Raises:
        ExportError: the model, or a module in it, is in training mode, or computes with a fixed
            first dimension; or a tile would not be lowered: then the file is kept for
            `tbn-inspect`; or PyTorch is older than 2.7.
    """
    if torch.__version__ < "2.7":
        raise ExportError(f"PyTorch {torch.__version__} cannot write BatchNorm; export with 2.7")
    _check_mode(model)
    # The exporter takes a first dimension of 1 for a constant.
    batches = tuple(torch.cat([example, example]) for example in examples)
    batch = torch.export.Dim("batch", max=_LARGEST_BATCH)
    with _quiet():
        program = cast(
            "torch.onnx.ONNXProgram",
            torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
                model,
                batches,
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in batches),
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            ),
        )
    written = program.model
    _check_batch(model, written.graph.inputs)
    _strip_metadata(written)
    ir.save(written, path)  # pyright: ignore[reportUnknownMemberType]
    report = inspect_model(path)
    _check_lowering(report, _tile_sizes(model, _unread(program)))
    return report


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


def _check_mode(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training:
            where = f", in layer {name!r}," if name else ""
            kind = parametrize.type_before_parametrizations(module).__name__
            raise ExportError(f"{kind}{where} is in training mode; call .eval() before export")


def _check_batch(model: nn.Module, inputs: Sequence[ir.Value]) -> None:
    """Refuse a graph that the exporter made for one batch size only."""
    for value in inputs:
        if value.shape is not None and isinstance(value.shape[0], int):
            raise ExportError(
                f"{type(model).__name__} computes with a fixed first dimension of input "
                f"{value.name!r}; reshape with -1 in its place"
            )


def _check_lowering(report: ModelReport, tiles: Mapping[str, int]) -> None:
    """Raise ExportError unless the lowered weights are as many as the tiles in PyTorch."""
    lowered = {layer.weight: prod(layer.shape) for layer in report.lowered}
    if sum(lowered.values()) >= sum(tiles.values()):
        return
    missing = Counter(tiles.values()) - Counter(lowered.values())
    names = " or ".join(name for name, size in tiles.items() if size in missing)
    reasons = [f"{layer.name}: {layer.reason}" for layer in report.layers if layer.reason]
    raise ExportError(
        f"the tile of {names} is not lowered in {report.model}; "
        f"left alone are: {'; '.join(reasons) or 'no layers'}"
    )


def _unread(program: torch.onnx.ONNXProgram) -> set[str]:
    """Parameters that the exported computation does not read, as those of heads for training."""
    exported = program.exported_program
    if exported is None:
        return set()
    names = exported.graph_signature.inputs_to_parameters
    unread = [node.name for node in exported.graph.nodes if not node.users]
    return {names[name] for name in unread if name in names}


def _tile_sizes(model: nn.Module, unread: set[str]) -> dict[str, int]:
    """The number of weights of each layer that is read and whose weight is worth a tile.

    A BatchNorm that the exporter folds into a layer leaves one scale for each row, which a row of
    few weights is not worth.
    """
    return {
        name: candidate.weight.numel()
        for name, candidate in candidates(model).items()
        if candidate.weight[0].numel() > SMALLEST_GAIN
        and _is_tile(candidate.weight)
        and not any(latent in unread for latent in candidate.parameter_names)
    }


def _is_tile(weight: Tensor) -> bool:
    return not isinstance(detect_tile(weight.detach().float().cpu().numpy()), NotTiled)


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
