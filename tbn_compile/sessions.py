"""Run checked model files in ONNX Runtime, on inputs that are made up or read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from numpy.lib.npyio import NpzFile

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.loading import load_model
from tbn_compile.passes.onnx.tiled_nodes import tiled_nodes

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

MAX_INPUT_ELEMENTS = 2**30
"""The most elements of a made-up input; what a model claims beyond is refused."""

_FATAL_ONLY = 4
_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class CheckedModel:
    """A model file that passed every check of `load_model`.

    Attributes:
        path: the file.
        graph: what it holds; external data stays on disk.
    """

    path: Path
    graph: ir.Model

    @property
    def name(self) -> str:
        """The file's name, printable."""
        return clean(self.path.name, 80)

    @property
    def inputs(self) -> list[ir.Value]:
        """The inputs that a caller has to give; those with a default in the file are left out."""
        return [value for value in self.graph.graph.inputs if value.const_value is None]

    @property
    def input_names(self) -> list[str]:
        """Names of `inputs`."""
        return [value.name or "" for value in self.inputs]

    @property
    def input_shapes(self) -> dict[str, tuple[Any, ...]]:
        """Shapes of `inputs` by name, as far as their rank is known."""
        return {
            value.name or "": tuple(value.shape) for value in self.inputs if value.shape is not None
        }

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [value.name or "" for value in self.graph.graph.outputs]


def check_model(path: str | Path) -> CheckedModel:
    """Check a model file before anything runs it.

    Raises:
        ModelError: if the file is missing, unsafe or invalid.
    """
    return CheckedModel(Path(path), load_model(Path(path)))


class Session:
    """A model loaded into ONNX Runtime on the CPU.

    Args:
        model: the file to run.
        library: path of our custom-operator library; None for a stock runtime, in which the bodies
            of `ai.tbn` operators run and expand their weights.
        threads: threads of one operator; None leaves the number to ONNX Runtime.
        content: a changed copy of the file to run in its place.

    Raises:
        ModelError: if ONNX Runtime cannot load the model, or a stock runtime would need more than
            the machine's memory for its weights.
        UsageError: if the library cannot be loaded.
    """

    def __init__(
        self,
        model: CheckedModel,
        library: str | None = None,
        threads: int | None = None,
        content: bytes | None = None,
    ) -> None:
        self._name = model.name
        options = _options(threads)
        if library is None:
            _refuse_huge_expansion(model)
        else:
            _register(options, library)
        if content is not None:
            options.add_session_config_entry(_FOLDER_OPTION, str(model.path.parent.resolve()))
        try:
            self._session = onnxruntime.InferenceSession(
                str(model.path) if content is None else content,
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ModelError(
                f"{self._name}: ONNX Runtime cannot load it: {_first_line(error)}"
            ) from error

    def run(self, feeds: Arrays) -> Arrays:
        """Run once.

        Args:
            feeds: each input's values, by name.

        Returns:
            Each output's values, by name.

        Raises:
            ModelError: if ONNX Runtime fails.
        """
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self.run_raw(feeds), strict=True))

    def run_raw(self, feeds: Arrays) -> Sequence[Any]:
        """Like `run`, with nothing around the call into ONNX Runtime: outputs in their order."""
        try:
            return self._session.run(None, feeds)
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ModelError(
                f"{self._name}: ONNX Runtime cannot run it: {_first_line(error)}"
            ) from error


def random_inputs(model: CheckedModel, seed: int, input_dims: Mapping[str, int]) -> Arrays:
    """Make up a value for every input.

    Floats are standard normal. Integers are 0 or 1, which suits masks, token kinds and indices into
    tables of any length. Symbolic dimensions have the given extent, or 1.

    Raises:
        ModelError: if an input's type or shape cannot be made up.
    """
    generator = np.random.default_rng(seed)
    return {value.name or "": _random_array(value, generator, input_dims) for value in model.inputs}


def read_inputs(model: CheckedModel, path: str | Path) -> Arrays:
    """Read a value for every input from an `.npz` file, which names them.

    Raises:
        UsageError: if the file cannot be read, or its names or types are not the model's.
    """
    name = clean(Path(path).name, 80)
    try:
        with Path(path).open("rb") as file:
            arrays: Arrays = dict(NpzFile(file, allow_pickle=False))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{name}: cannot be read as an .npz file of numbers") from error
    if sorted(arrays) != sorted(model.input_names):
        raise UsageError(
            f"{name} holds {_listed(arrays)}; the inputs are {_listed(model.input_names)}"
        )
    for value in model.inputs:
        given = arrays[value.name or ""].dtype
        if value.dtype is not None and given != value.dtype.numpy():
            raise UsageError(f"{name}: {value.name!r} is {given}, not {value.dtype.numpy()}")
    return arrays


def known_dims(
    model: CheckedModel,
    artifact_shapes: Mapping[str, Sequence[Any]],
    input_dims: Mapping[str, int],
) -> dict[str, int]:
    """Extents for the model's symbolic dimensions: as given, or as an artifact has pinned them.

    Args:
        model: the original.
        artifact_shapes: of the artifact's inputs, by name.
        input_dims: extents that were given.

    Raises:
        UsageError: if a given name is no symbolic dimension of the model.
    """
    symbolic = {
        dim.value: other
        for mine, theirs in _shapes_of_both(model, artifact_shapes)
        for dim, other in zip(mine, theirs, strict=True)
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None
    }
    for name in input_dims:
        if name not in symbolic:
            raise UsageError(
                f"no input dimension {clean(name, 40)!r}; the model has: {_listed(symbolic)}"
            )
    pinned = {name: other for name, other in symbolic.items() if isinstance(other, int)}
    return {**pinned, **input_dims}


def expanded_bytes(model: ir.Model) -> int:
    """Bytes that a stock runtime needs for the weights of `ai.tbn` nodes.

    All dense weights stay in memory; what else the largest node's body computes comes on top.
    """
    sizes = [_body_bytes(node) for node in tiled_nodes(model)]
    return sum(dense for dense, _ in sizes) + max((work for _, work in sizes), default=0)


def _body_bytes(node: ir.Node) -> tuple[int, int]:
    """Bytes of the dense weight and of the steps before it, as the function body computes them."""
    scale = node.inputs[2]
    width = 4 if scale is None or scale.dtype is None else scale.dtype.itemsize
    extents = () if scale is None or scale.shape is None else tuple(scale.shape)
    scales = prod(extent for extent in extents if isinstance(extent, int))
    attributes = node.attributes
    weights = prod(attributes["weight_shape"].as_ints())
    tile = attributes["tile_length"].as_int()
    scale_stop = weights + int(attributes.get_int("scale_offset", 0) or 0)
    cycle = scales * min(attributes["scale_length"].as_int(), scale_stop)
    dense = int(weights * width)
    signs = 4 * tile + 2 * weights
    return dense, signs + 3 * dense + int((scale_stop + cycle) * width)


def _refuse_huge_expansion(model: CheckedModel) -> None:
    needed = expanded_bytes(model.graph)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ModelError(
            f"{model.name}: its tiles expand to {needed} bytes without our library, more than the "
            f"machine's {memory}; run it with the library"
        )


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    # Otherwise it rounds float weights beside quantised activations to integers by itself.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options


def _register(options: onnxruntime.SessionOptions, library: str) -> None:
    try:
        options.register_custom_ops_library(library)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise UsageError(
            f"{clean(Path(library).name, 80)} cannot be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    """ONNX Runtime's own words, without its prefix of codes."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(" : ", 3)[-1] if line.startswith("[ONNXRuntimeError]") else line


def _random_array(
    value: ir.Value, generator: np.random.Generator, input_dims: Mapping[str, int]
) -> npt.NDArray[Any]:
    if not isinstance(value.type, ir.TensorType) or value.shape is None:
        raise ModelError(f"input {value.name!r} is no tensor of known rank; give inputs in a file")
    shape = [
        dim if isinstance(dim, int) else input_dims.get(dim.value or "", 1) for dim in value.shape
    ]
    if prod(shape) > MAX_INPUT_ELEMENTS:
        raise ModelError(
            f"input {value.name!r} of shape {clean(shape, 80)} is too large; "
            f"at most {MAX_INPUT_ELEMENTS} elements are made up"
        )
    kind = value.type.dtype
    if kind in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16):
        return generator.standard_normal(shape).astype(kind.numpy())
    if kind == ir.DataType.BOOL or (kind.is_integer() and kind.bitwidth >= 8):
        return generator.integers(0, 2, shape).astype(kind.numpy())
    raise ModelError(f"input {value.name!r} is {kind.name}, which ONNX Runtime takes from no array")


def _shapes_of_both(
    model: CheckedModel, artifact_shapes: Mapping[str, Sequence[Any]]
) -> list[tuple[ir.Shape, Sequence[Any]]]:
    """Shapes of the same input in both files; the model's own where the artifact's has no part."""
    pairs: list[tuple[ir.Shape, Sequence[Any]]] = []
    for value in model.inputs:
        if value.shape is None:
            continue
        other = artifact_shapes.get(value.name or "")
        same_rank = other is not None and len(other) == len(value.shape)
        pairs.append(
            (value.shape, other if other is not None and same_rank else tuple(value.shape))
        )
    return pairs


def _listed(names: Any) -> str:
    return ", ".join(sorted(clean(name, 40) for name in names)) or "none"
