"""Load an untrusted ONNX file into a checked in-memory graph with lazy weights.

Nothing is sized, read or followed before it is checked: the file's own claims (dimensions, lengths,
offsets, paths) are untrusted integers and strings.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from tbn_compile import operators
from tbn_compile.errors import ModelError, TileError, clean
from tbn_compile.tile import MAX_ELEMENTS, TiledBinaryWeight

MAX_FILE_BYTES = 2**31 - 1
MAX_NODES = 500_000
MAX_DEPTH = 32
MAX_CALLS = 256
MAX_DIMENSION = 2**31 - 1

_LONGEST_SHAPE = 1024
_SCALE_TYPES = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)
_SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Tile": 1}
"""Operators whose result is as large as a tensor says, and the place of that input."""

_FIELD_OF: dict[int, str] = {
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
        _check_text(proto)
        _use_default_domain(proto)
        _check_graph(proto.graph, path.parent, {}, 0)
        for function in proto.functions:
            _check_nodes(function.node, path.parent, {}, 1)
        _check_names(proto.graph, frozenset())
        _check_standard(proto)
        _drop_listed_initializers(proto)
        model = ir.from_proto(proto)
    except (ModelError, TileError) as error:
        raise ModelError(f"{clean(path.name, 80)}: {error}") from error
    except (onnx.checker.ValidationError, ir.serde.SerdeError, ValueError, TypeError) as error:
        text = " ".join(str(error).split()) or "unreadable graph"
        raise ModelError(f"{clean(path.name, 80)}: not a valid model: {text}") from error
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        ir.external_data.set_base_dir(graph, path.parent.resolve())
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


def model_files(path: Path, model: ir.Model) -> frozenset[Path]:
    """The file that `model` was loaded from and the external data that it refers to, resolved."""
    tensors = [value.const_value for g in model.graphs() for value in g.initializers.values()]
    tensors += [
        attribute.as_tensor()
        for node in model.graph.all_nodes()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref()
    ]
    external = {Path(t.path).resolve() for t in tensors if isinstance(t, ir.ExternalTensor)}
    return frozenset({path.resolve(), *external})


def total_bytes(files: Iterable[Path]) -> int:
    """The size of several files together."""
    return sum(file.stat().st_size for file in files)


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


def _check_text(message: Message) -> None:
    """Refuse text that is not UTF-8: protobuf reads it without complaint, but cannot write it."""
    for name, is_message, is_repeated in _text_fields(message.DESCRIPTOR):
        if is_message and not is_repeated and not message.HasField(name):
            continue
        value = getattr(message, name)
        for part in value if is_repeated else (value,):
            if is_message:
                _check_text(part)
            elif not isinstance(part, str):
                raise ModelError(f"{message.DESCRIPTOR.name}.{name} holds text that is not UTF-8")


@cache
def _text_fields(kind: Descriptor) -> tuple[tuple[str, bool, bool], ...]:
    """Fields that are or may hold strings: name, whether it is a message, whether repeated."""
    return tuple(
        (field.name, field.type == field.TYPE_MESSAGE, field.is_repeated)
        for field in kind.fields
        if field.type in (field.TYPE_MESSAGE, field.TYPE_STRING)
    )


def _check_standard(proto: onnx.ModelProto) -> None:
    """Apply ONNX's own rules: operators, attributes, acyclic order, single assignment."""
    operators.register_schemas()
    newest = onnx.defs.onnx_opset_version()
    for imported in proto.opset_import:
        if imported.domain in ("", "ai.onnx") and not 1 <= imported.version <= newest:
            raise ModelError(f"operator set {imported.version} is unknown; 1 to {newest} are read")
    functions = {(f.domain, f.name): f for f in proto.functions}
    nodes = _count_inlined(proto.graph.node, functions, {})
    if nodes > MAX_NODES:
        raise ModelError(f"{nodes} nodes once functions are inlined; at most {MAX_NODES} are read")
    onnx.checker.check_model(_without_weights(proto))


def _count_inlined(
    nodes: Iterable[onnx.NodeProto],
    functions: Mapping[tuple[str, str], onnx.FunctionProto],
    counts: dict[tuple[str, str], int | None],
) -> int:
    """Nodes when every call of a local function is replaced by its body.

    Args:
        nodes: of a graph or a function; those in subgraphs count too.
        functions: the model's own, by domain and name.
        counts: the functions counted so far; None marks one that is being counted.
    """
    total = 0
    for node in nodes:
        total += 1
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                total += _count_inlined(inner.node, functions, counts)
        key = (node.domain, node.op_type)
        if key not in functions:
            continue
        if key not in counts:
            if len(counts) > MAX_CALLS:
                raise ModelError(f"more than {MAX_CALLS} functions")
            counts[key] = None
            counts[key] = _count_inlined(functions[key].node, functions, counts)
        count = counts[key]
        if count is None:
            raise ModelError(f"function {_quoted(node.op_type)} calls itself")
        total += count
    return total


def _use_default_domain(proto: onnx.ModelProto) -> None:
    """Spell the default domain "" wherever it is written out as "ai.onnx"."""
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    imports = [proto.opset_import, *(function.opset_import for function in proto.functions)]
    nodes = (inner for body in bodies for node in body for inner in _with_inner(node))
    for named in (*nodes, *(each for group in imports for each in group)):
        if named.domain == "ai.onnx":
            named.domain = ""


def _check_names(graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Refuse a tensor of a subgraph that hides another: runtimes differ in which one they take."""
    own = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    hidden = next((name for name in own if name in outer), None)
    if hidden is not None:
        raise ModelError(f"tensor {_quoted(hidden)} in a subgraph hides another; rename it")
    computed = (name for node in graph.node for name in node.output if name)
    visible = outer.union(own, computed)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                _check_names(inner, visible)


def _with_inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node, and all nodes in its subgraphs."""
    yield node
    for attribute in node.attribute:
        for graph in _graphs(attribute):
            for inner in graph.node:
                yield from _with_inner(inner)


def _drop_listed_initializers(proto: onnx.ModelProto) -> None:
    """Before IR version 4 every initializer was listed as an input; none could be overridden."""
    if proto.ir_version >= 4:
        return
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every large tensor replaced by a claim that the checker does not follow."""
    light = onnx.ModelProto()
    if proto.ByteSize() < 2**24:
        light.CopyFrom(proto)
    else:
        _copy_lightly(proto, light)
    for tensor in (*_tensors(light.graph), *_function_tensors(light)):
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


def _hollow(tensor: onnx.TensorProto) -> None:
    name, kind = tensor.name, tensor.data_type
    tensor.Clear()
    tensor.name, tensor.data_type = name, kind
    tensor.dims.append(0)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _attribute_tensors(node)


def _function_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for function in proto.functions:
        for node in function.node:
            yield from _attribute_tensors(node)


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for inner in _graphs(attribute):
            yield from _tensors(inner)


def _graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)


def _check_graph(
    graph: onnx.GraphProto, folder: Path, outer: Mapping[str, onnx.TensorProto], depth: int
) -> None:
    if depth > MAX_DEPTH:
        raise ModelError(f"subgraphs are nested deeper than {MAX_DEPTH}")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value > MAX_DIMENSION:
                raise ModelError(f"tensor {_quoted(value.name)} has a dimension of {dim.dim_value}")
    for tensor in graph.initializer:
        _check_tensor(tensor, folder)
    for sparse in graph.sparse_initializer:
        raise ModelError(f"tensor {_quoted(sparse.values.name)} is sparse; store it dense")
    known = {tensor.name: tensor for tensor in graph.initializer}
    _check_nodes(graph.node, folder, {**outer, **known}, depth)


def _check_nodes(
    nodes: Iterable[onnx.NodeProto],
    folder: Path,
    outer: Mapping[str, onnx.TensorProto],
    depth: int,
) -> None:
    """Check tensors and subgraphs in attributes, and what constants say of sizes.

    Args:
        nodes: in execution order.
        folder: where external data lies.
        outer: constants that the nodes can read, by name.
        depth: how many graphs these nodes are inside.
    """
    known = dict(outer)
    for node in nodes:
        for attribute in node.attribute:
            tensors = ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors)
            for tensor in tensors:
                _check_tensor(tensor, folder)
            for inner in _graphs(attribute):
                _check_graph(inner, folder, known, depth + 1)
            if node.op_type == "Constant" and node.output:
                known[node.output[0]] = _constant(attribute)
        if node.domain == operators.DOMAIN and node.op_type in (operators.GEMM, operators.CONV):
            _check_tiled_node(node, known)
        place = _SHAPE_INPUT.get(node.op_type, len(node.input))
        if place < len(node.input) and node.input[place] in known:
            _check_claim(node, _integers(known[node.input[place]]))


def _constant(attribute: onnx.AttributeProto) -> onnx.TensorProto:
    if attribute.HasField("t"):
        return attribute.t
    kind = onnx.TensorProto.INT64 if attribute.ints else onnx.TensorProto.UNDEFINED
    return onnx.TensorProto(data_type=kind, dims=[len(attribute.ints)], int64_data=attribute.ints)


def _check_claim(node: onnx.NodeProto, shape: list[int]) -> None:
    """Refuse a constant shape or repeat that no tensor can have, before shapes are inferred."""
    extents = [max(1, extent) for extent in shape]
    if max(extents, default=1) > MAX_DIMENSION or prod(extents) > MAX_ELEMENTS:
        raise ModelError(
            f"node {_quoted(node.name)} ({node.op_type}) asks for shape {clean(shape, 80)}"
        )


def _integers(tensor: onnx.TensorProto) -> list[int]:
    """The values of a short embedded int64 tensor that was checked; none of any other."""
    embedded = tensor.data_location != onnx.TensorProto.EXTERNAL
    if tensor.data_type != onnx.TensorProto.INT64 or prod(tensor.dims) > _LONGEST_SHAPE:
        return []
    return onnx.numpy_helper.to_array(tensor).reshape(-1).tolist() if embedded else []


def _check_dimensions(name: str, dims: Any) -> int:
    if any(not 0 <= extent <= MAX_DIMENSION for extent in dims) or prod(dims) > MAX_ELEMENTS:
        raise ModelError(f"tensor {_quoted(name)} claims shape {clean(list(dims), 80)}")
    return prod(dims)


def _check_tensor(tensor: onnx.TensorProto, folder: Path) -> None:
    """Check that a tensor's data has the very length that its shape and type claim."""
    count = _check_dimensions(tensor.name, tensor.dims)
    try:
        kind = ir.DataType(tensor.data_type)
    except ValueError as error:
        raise ModelError(f"tensor {_quoted(tensor.name)} has no known type") from error
    if kind == ir.DataType.UNDEFINED:
        raise ModelError(f"tensor {_quoted(tensor.name)} has no known type")
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
            f"tensor {_quoted(tensor.name)} of shape {clean(list(tensor.dims), 80)} stores "
            f"{stored} values or bytes where {needed} are needed"
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
    try:
        if len(entries) != len(tensor.external_data):
            raise ModelError("says two things at once")
        size = _data_file(folder, entries.get("location", ""))
        offset = _size(entries, "offset", 0)
        length = _size(entries, "length", needed)
        if length != needed or offset + length > size:
            raise ModelError(
                f"of {length} bytes at {offset} does not fit a file of {size} bytes and a tensor "
                f"of {needed}"
            )
    except (ModelError, OSError) as error:
        raise ModelError(f"tensor {_quoted(tensor.name)}: external data {error}") from error


def _data_file(folder: Path, location: str) -> int:
    """The size in bytes of a plain, readable file below the folder, given without detours."""
    name = _quoted(location)
    parts = Path(location).parts
    if not parts or "\0" in location or Path(location).is_absolute() or ".." in parts:
        raise ModelError(f"{name} leaves the folder")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ModelError(f"{name} is a link")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"{name} leaves the folder")
    size = regular_file(path)
    if path.stat().st_nlink > 1:
        raise ModelError(f"{name} is a hard link")
    if not os.access(path, os.R_OK):
        raise ModelError(f"{name} cannot be read")
    return size


def _size(entries: Mapping[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{key} {clean(text, 40)!r} is no size")
    return int(text)


def _check_tiled_node(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> None:
    """Check an operator of `ai.tbn` that the file already holds, before any weight is expanded."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    tile, scale = (known.get(name) for name in (*node.input[1:3], "", "")[:2])
    try:
        _check_tiling(values, tile, scale)
    except (KeyError, TypeError, ValueError) as error:
        missing = f"attribute {error} is missing" if isinstance(error, KeyError) else error
        raise ModelError(f"node {_quoted(node.name)} ({node.op_type}): {missing}") from error


def _check_tiling(
    values: dict[str, Any], tile: onnx.TensorProto | None, scale: onnx.TensorProto | None
) -> None:
    length = int(values["tile_length"])
    if not 1 <= length <= MAX_ELEMENTS:
        raise TileError(f"tile length {length} must be 1 to {MAX_ELEMENTS}")
    if tile is not None and (list(tile.dims), tile.data_type) != (
        [-(-length // 8)],
        onnx.TensorProto.UINT8,
    ):
        raise TileError(f"tile of shape {list(tile.dims)} does not hold {length} bits in uint8")
    if scale is not None and (len(scale.dims) != 1 or scale.data_type not in _SCALE_TYPES):
        raise TileError("scale must have one axis and be float32, float16 or bfloat16")
    furthest = int(values.get("scale_offset", 0)) + prod(values["weight_shape"])
    if furthest > MAX_ELEMENTS:
        raise TileError(
            f"the weights, {furthest} from the start of the scales, are more than {MAX_ELEMENTS}"
        )
    TiledBinaryWeight(
        bits=np.broadcast_to(np.uint8(0), (-(-length // 8),)),
        shape=tuple(values["weight_shape"]),
        tile_length=length,
        scale=np.broadcast_to(np.float32(1), (scale.dims[0] if scale else 1,)),
        scale_length=int(values["scale_length"]),
        offset=int(values.get("offset", 0)),
        scale_offset=int(values.get("scale_offset", 0)) if scale else 0,
        layout="NK" if values.get("transB", 1) else "KN",
    )


def _quoted(name: str) -> str:
    return repr(clean(name, 80))
