"""Load an untrusted ONNX file into a checked in-memory graph with lazy weights.

Nothing is sized, read or followed before it is checked: the file's own claims (dimensions, lengths,
offsets, paths) are untrusted integers and strings.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from tbn_compile import operators
from tbn_compile.errors import ModelError, TileError, clean
from tbn_compile.tile import MAX_ELEMENTS, TiledBinaryWeight

MAX_FILE_BYTES = 2**31 - 1
MAX_NODES = 500_000
MAX_DEPTH = 32
MAX_DIMENSION = 2**31 - 1

_FIELD_OF = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.COMPLEX64: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.COMPLEX128: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.UINT32: "uint64_data",
    onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.STRING: "string_data",
}


def load_model(path: Path) -> ir.Model:
    """Read a model and check it whole.

    Args:
        path: an `.onnx` file; external data must lie in its folder or below.

    Returns:
        The graph; tensors stored as external data stay on disk until `tensor_array` reads them.

    Raises:
        ModelError: if the file or anything it refers to is missing, unsafe, inconsistent or not
            valid ONNX. The text names the file and the tensor or node.
    """
    size = regular_file(path)
    try:
        proto = _parse(path, size)
        _check_graph(proto.graph, path.parent, 0)
        for function in proto.functions:
            for node in function.node:
                _check_attributes(node, path.parent, 1)
        _check_standard(proto)
        model = ir.from_proto(proto)
    except (ModelError, TileError) as error:
        raise ModelError(f"{clean(path.name, 80)}: {error}") from error
    except (onnx.checker.ValidationError, ir.serde.SerdeError, ValueError, TypeError) as error:
        text = str(error).strip().splitlines() or ["unreadable graph"]
        raise ModelError(f"{clean(path.name, 80)}: not a valid model: {text[0]}") from error
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    return model


def tensor_array(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    """A tensor's values; external data is read, not mapped, so that it can be let go again."""
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth % 8:
        return tensor.numpy()
    shape = tuple(int(extent) for extent in tensor.shape.numpy())
    values = np.fromfile(
        tensor.path, tensor.dtype.numpy().newbyteorder("<"), prod(shape), offset=tensor.offset or 0
    )
    return values.reshape(shape)


def regular_file(path: Path) -> int:
    """The size in bytes of a plain file.

    Raises:
        ModelError: if it is missing, unreadable, a folder, a device or a pipe.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise ModelError(f"{clean(path.name, 80)}: no such file; check the path") from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{clean(path.name, 80)}: not a regular file")
    return status.st_size


def _parse(path: Path, size: int) -> onnx.ModelProto:
    if size == 0:
        raise ModelError("the file is empty")
    if size > MAX_FILE_BYTES:
        raise ModelError("larger than 2 GB; store the weights as external data")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ModelError("not an ONNX file: it is damaged, cut short or of another kind") from error
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError("not an ONNX file: it holds no graph")
    return proto


def _check_standard(proto: onnx.ModelProto) -> None:
    """Apply ONNX's own rules: operators, attributes, acyclic order, single assignment."""
    operators.register_schemas()
    nodes = sum(1 for _ in _nodes(proto.graph)) + sum(len(f.node) for f in proto.functions)
    if nodes > MAX_NODES:
        raise ModelError(f"{nodes} nodes; at most {MAX_NODES} are read")
    onnx.checker.check_model(_without_weights(proto))


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every large tensor replaced by a claim that the checker does not follow."""
    light = onnx.ModelProto()
    light.CopyFrom(proto) if proto.ByteSize() < 2**24 else _copy_lightly(proto, light)
    for tensor in _tensors(light.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _hollow(tensor)
    return light


def _copy_lightly(proto: onnx.ModelProto, light: onnx.ModelProto) -> None:
    large = [t for t in proto.graph.initializer if t.ByteSize() > 4096]
    kept = [t for t in proto.graph.initializer if t.ByteSize() <= 4096]
    hollow = [onnx.TensorProto(name=t.name, data_type=t.data_type, dims=[0]) for t in large]
    light.CopyFrom(onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import))
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.initializer.extend(kept + hollow)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)


def _hollow(tensor: onnx.TensorProto) -> None:
    name, kind = tensor.name, tensor.data_type
    tensor.Clear()
    tensor.name, tensor.data_type = name, kind
    tensor.dims.append(0)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                yield from _nodes(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in _graphs(attribute):
                yield from _tensors(inner)


def _graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)


def _check_graph(graph: onnx.GraphProto, folder: Path, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ModelError(f"subgraphs are nested deeper than {MAX_DEPTH}")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value > MAX_DIMENSION:
                raise ModelError(f"tensor {value.name!r} has a dimension of {dim.dim_value}")
    for tensor in graph.initializer:
        _check_tensor(tensor, folder)
    for sparse in graph.sparse_initializer:
        _check_tensor(sparse.values, folder)
        _check_tensor(sparse.indices, folder)
        _check_dimensions(sparse.values.name, sparse.dims)
    for node in graph.node:
        _check_attributes(node, folder, depth)
    _check_tiled_nodes(graph)


def _check_attributes(node: onnx.NodeProto, folder: Path, depth: int) -> None:
    for attribute in node.attribute:
        tensors = ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors)
        for tensor in tensors:
            _check_tensor(tensor, folder)
        for inner in _graphs(attribute):
            _check_graph(inner, folder, depth + 1)


def _check_dimensions(name: str, dims: Any) -> int:
    if any(not 0 <= extent <= MAX_DIMENSION for extent in dims) or prod(dims) > MAX_ELEMENTS:
        raise ModelError(f"tensor {name!r} claims shape {clean(list(dims), 80)}")
    return prod(dims)


def _check_tensor(tensor: onnx.TensorProto, folder: Path) -> None:
    """Check that a tensor's data has the very length that its shape and type claim."""
    count = _check_dimensions(tensor.name, tensor.dims)
    try:
        kind = ir.DataType(tensor.data_type)
    except ValueError as error:
        raise ModelError(f"tensor {tensor.name!r} has no known type") from error
    if kind == ir.DataType.UNDEFINED:
        raise ModelError(f"tensor {tensor.name!r} has no known type")
    if kind == ir.DataType.STRING:
        needed, stored = count, len(tensor.string_data)
    elif tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, folder, -(-count * kind.bitwidth // 8))
        return
    elif tensor.HasField("raw_data"):
        needed, stored = -(-count * kind.bitwidth // 8), len(tensor.raw_data)
    else:
        needed, stored = _field_count(tensor, kind, count)
    if needed != stored:
        raise ModelError(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} stores {stored} values or bytes "
            f"where {needed} are needed"
        )


def _field_count(tensor: onnx.TensorProto, kind: ir.DataType, count: int) -> tuple[int, int]:
    field = _FIELD_OF.get(tensor.data_type, "int32_data")
    entries = 2 * count if kind.name.startswith("COMPLEX") else count
    if kind.bitwidth < 8:
        entries = -(-count * kind.bitwidth // 8)
    return entries, len(getattr(tensor, field))


def _check_external(tensor: onnx.TensorProto, folder: Path, needed: int) -> None:
    """Check location, offset and length against the file and the shape.

    External data specification: ONNX, docs/ExternalData.md. Stricter here: no symbolic link, no
    absolute path and no `..`, even where they would end inside the folder.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    parts = Path(location).parts
    if not location or "\0" in location or Path(location).is_absolute() or ".." in parts:
        raise ModelError(f"tensor {tensor.name!r}: external data {location!r} leaves the folder")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ModelError(f"tensor {tensor.name!r}: external data {location!r} is a link")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"tensor {tensor.name!r}: external data {location!r} leaves the folder")
    try:
        size = regular_file(path)
    except ModelError as error:
        raise ModelError(f"tensor {tensor.name!r}: external data {error}") from error
    if path.stat().st_nlink > 1:
        raise ModelError(f"tensor {tensor.name!r}: external data {location!r} is a hard link")
    offset, length = _integer(tensor, entries, "offset", 0), _integer(tensor, entries, "length", needed)
    if length != needed or offset + length > size:
        raise ModelError(
            f"tensor {tensor.name!r}: external data of {length} bytes at {offset} does not fit "
            f"a file of {size} bytes and a tensor of {needed}"
        )
    if not os.access(path, os.R_OK):
        raise ModelError(f"tensor {tensor.name!r}: external data {location!r} cannot be read")


def _integer(tensor: onnx.TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"tensor {tensor.name!r}: external data {key} {clean(text, 40)!r} is no size")
    return int(text)


def _check_tiled_nodes(graph: onnx.GraphProto) -> None:
    """Check operators of `ai.tbn` that the file already holds, before any weight is expanded."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.domain != operators.DOMAIN:
            continue
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        tile, scale = (shapes.get(name) for name in (*node.input[1:3], "", "")[:2])
        try:
            _check_tiled_node(values, tile, scale)
        except (KeyError, TypeError, TileError) as error:
            raise ModelError(f"node {node.name!r} ({node.op_type}): {error}") from error


def _check_tiled_node(
    values: dict[str, Any], tile: list[int] | None, scale: list[int] | None
) -> None:
    length = int(values["tile_length"])
    if not 1 <= length <= MAX_ELEMENTS:
        raise TileError(f"tile length {length} must be 1 to {MAX_ELEMENTS}")
    if tile is not None and tile != [-(-length // 8)]:
        raise TileError(f"tile of shape {tile} does not hold {length} bits")
    if scale is not None and (len(scale) != 1 or not 1 <= scale[0] <= MAX_ELEMENTS):
        raise TileError(f"scale has shape {scale}; give it one axis, one entry or more")
    TiledBinaryWeight(
        bits=np.broadcast_to(np.uint8(0), (-(-length // 8),)),
        shape=tuple(values["weight_shape"]),
        tile_length=length,
        scale=np.broadcast_to(np.float32(1), (scale[0] if scale else 1,)),
        scale_length=int(values["scale_length"]),
        offset=int(values.get("offset", 0)),
        scale_offset=int(values.get("scale_offset", 0)) if scale else 0,
        layout="NK" if values.get("transB", 1) else "KN",
    )
