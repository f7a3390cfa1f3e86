"""The operator set `ai.tbn`, version 1: schemas, shape inference and portable function bodies.

`TiledBinaryGemm` and `TiledBinaryConv` are Gemm and Conv whose weight is given as a tile, see
`tbn_compile.tile`. Each has a body in standard ONNX operators, which a model carries as a
model-local function so that it runs where no kernel for `ai.tbn` is registered.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx.parser
from onnx import defs

from tbn_compile.tile import TiledBinaryWeight

DOMAIN = "ai.tbn"
VERSION = 1
GEMM = "TiledBinaryGemm"
CONV = "TiledBinaryConv"
MIN_OPSET = 15
"""The oldest version of the default operator set in which the function bodies can be written."""

INFINITY = float("inf")

_WEIGHT_ATTRIBUTES = (
    ("weight_shape", "INTS", None, "Shape of the dense weight in stored order."),
    ("tile_length", "INT", None, "Number of signs in the tile, q."),
    ("offset", "INT", 0, "Position in the tile of the first weight, 0 <= offset < tile_length."),
    ("scale_length", "INT", None, "How many consecutive weights share one scale."),
    ("scale_offset", "INT", 0, "Position in the cycle of scales of the first weight."),
    ("activation_min", "FLOAT", -INFINITY, "Lower bound to which Y is clamped last."),
    ("activation_max", "FLOAT", INFINITY, "Upper bound to which Y is clamped last."),
)
_GEMM_ATTRIBUTES = (
    ("transB", "INT", 1, "1: weight_shape is [N, K]. 0: it is [K, N], as in Gemm."),
)
_CONV_ATTRIBUTES = (
    ("auto_pad", "STRING", "NOTSET", "As in Conv."),
    ("dilations", "INTS", (), "As in Conv; ones if absent."),
    ("group", "INT", 1, "As in Conv."),
    ("pads", "INTS", (), "As in Conv; zeros if absent. Not together with auto_pad."),
    ("strides", "INTS", (), "As in Conv; ones if absent."),
)

_FORMULA = """
The dense weight, flattened in the order of `weight_shape`, is

    W[i] = scale[((i + scale_offset) / scale_length) mod C] * sign[(i + offset) mod tile_length]

with `/` the integer division, C the number of scales and `sign` +1 where the tile's bit is 1 and
-1 where it is 0; the least significant bit of each byte comes first. Accumulation is in float32.
Y is clamped to [activation_min, activation_max] last, which is Relu for [0, inf]; NaN stays NaN.
"""
_DOCS = {
    GEMM: "Y = clamp(X * W^T + bias), with W an [N, K] weight stored as a repeated binary tile "
    f"and its scales.\n{_FORMULA}",
    CONV: "Y = clamp(Conv(X, W, bias)), with W an [N, C/group, k1, ...] weight stored as a "
    f"repeated binary tile and its scales; 1, 2 or 3 spatial axes.\n{_FORMULA}",
}
_X_SHAPES = {GEMM: "[..., K]", CONV: "[batch, channels, d1, ...]"}
_Y_SHAPES = {GEMM: "[..., N]", CONV: "[batch, N, o1, ...]"}

_WEIGHT_BODY = """
  first = Constant <value_ints = [0]> ()
  second = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [-1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  weight_shape = Constant <value_ints : ints = @weight_shape> ()
  length = ReduceProd <keepdims = 1> (weight_shape)

  column = Constant <value_ints = [-1, 1]> ()
  bytes = Reshape (tile, column)
  positions = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
  shifted = BitShift <direction = "RIGHT"> (bytes, positions)
  two = Constant <value = uint8 {2}> ()
  bits = Mod (shifted, two)
  bits_flat = Reshape (bits, last)
  tile_length_scalar = Constant <value_int : int = @tile_length> ()
  tile_length = Reshape (tile_length_scalar, last)
  tile_bits = Slice (bits_flat, first, tile_length)
  tile_signs = Cast <to = 9> (tile_bits)
  start_scalar = Constant <value_int : int = @offset> ()
  start = Reshape (start_scalar, last)
  stop = Add (start, length)
  stop_and_tile = Add (stop, tile_length)
  stop_rounded = Sub (stop_and_tile, second)
  tiles = Div (stop_rounded, tile_length)
  tile_grid = Concat <axis = 0> (tiles, tile_length)
  row = Constant <value_ints = [1, -1]> ()
  tile_row = Reshape (tile_signs, row)
  tiles_expanded = Expand (tile_row, tile_grid)
  tiles_flat = Reshape (tiles_expanded, last)
  signs = Slice (tiles_flat, start, stop)

  run_scalar = Constant <value_int : int = @scale_length> ()
  run_unbounded = Reshape (run_scalar, last)
  scale_start_scalar = Constant <value_int : int = @scale_offset> ()
  scale_start = Reshape (scale_start_scalar, last)
  scale_stop = Add (scale_start, length)
  run = Min (run_unbounded, scale_stop)
  scale_count = Shape (scale)
  cycle = Mul (scale_count, run)
  scale_stop_and_cycle = Add (scale_stop, cycle)
  scale_stop_rounded = Sub (scale_stop_and_cycle, second)
  cycles = Div (scale_stop_rounded, cycle)
  plane = Constant <value_ints = [1, -1, 1]> ()
  scale_plane = Reshape (scale, plane)
  scale_grid = Concat <axis = 0> (cycles, scale_count, run)
  scales_expanded = Expand (scale_plane, scale_grid)
  scales_flat = Reshape (scales_expanded, last)
  magnitudes = Slice (scales_flat, scale_start, scale_stop)
  opposites = Neg (magnitudes)
  weights = Where (signs, magnitudes, opposites)
  W = Reshape (weights, weight_shape)
"""
_CLAMP_BODY = """
  lower_float = Constant <value_float : float = @activation_min> ()
  lower = CastLike (lower_float, X)
  upper_float = Constant <value_float : float = @activation_max> ()
  upper = CastLike (upper_float, X)
"""
_BODIES = {
    GEMM: f"""{_WEIGHT_BODY}{_CLAMP_BODY}
  x_shape = Shape (X)
  leading = Slice (x_shape, first, last)
  inputs = Slice (x_shape, last, end)
  rows_shape = Concat <axis = 0> (last, inputs)
  rows = Reshape (X, rows_shape)
  products = Gemm <transB : int = @transB> (rows, W, bias)
  clamped = Clip (products, lower, upper)
  clamped_shape = Shape (clamped)
  outputs = Slice (clamped_shape, second, end)
  y_shape = Concat <axis = 0> (leading, outputs)
  Y = Reshape <allowzero = 1> (clamped, y_shape)
""",
    CONV: f"""{_WEIGHT_BODY}{_CLAMP_BODY}
  products = Conv <auto_pad : string = @auto_pad, dilations : ints = @dilations,
    group : int = @group, pads : ints = @pads, strides : ints = @strides> (X, W, bias)
  Y = Clip (products, lower, upper)
""",
}


def attributes_of(operator: str) -> tuple[tuple[str, str, Any, str], ...]:
    """Each attribute of an operator: name, type, default (None if required) and meaning."""
    own = _GEMM_ATTRIBUTES if operator == GEMM else _CONV_ATTRIBUTES
    return _WEIGHT_ATTRIBUTES + own


def function_body(operator: str, opset: int) -> onnx.FunctionProto:
    """The model-local function of `operator`.

    Args:
        operator: `GEMM` or `CONV`.
        opset: version of the default operator set that the model imports, `MIN_OPSET` or later.
    """
    names = ", ".join(name for name, *_ in attributes_of(operator))
    text = (
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        f"{operator} <{names}> (X, tile, scale, bias) => (Y) {{{_BODIES[operator]}}}"
    )
    function = onnx.parser.parse_function(text)
    function.doc_string = _DOCS[operator]
    return function


def weight_attributes(weight: TiledBinaryWeight) -> dict[str, int | Sequence[int]]:
    """The attributes that describe a weight; its tile and scale are the node's inputs."""
    return {
        "weight_shape": weight.shape,
        "tile_length": weight.tile_length,
        "offset": weight.offset,
        "scale_length": weight.scale_length,
        "scale_offset": weight.scale_offset,
    }


def schemas() -> tuple[defs.OpSchema, ...]:
    """The schemas of both operators, with type and shape inference."""
    return _schema(GEMM, _infer_gemm), _schema(CONV, _infer_conv)


def register_schemas() -> None:
    """Make `onnx` know the operators in this process; harmless when called again."""
    for schema in schemas():
        if not defs.has(schema.name, schema.domain):
            defs.register_schema(schema)
            # Before onnx 1.23, a Python function that outlives the interpreter crashes its exit.
            atexit.register(defs.deregister_schema, schema.name, VERSION, DOMAIN)


def _schema(operator: str, infer: Any) -> defs.OpSchema:
    kinds = defs.OpSchema.AttrType
    parameter = defs.OpSchema.FormalParameter
    option = defs.OpSchema.FormalParameterOption.Optional
    schema = defs.OpSchema(
        operator,
        DOMAIN,
        VERSION,
        doc=_DOCS[operator],
        inputs=[
            parameter("X", "T", f"Activations, {_X_SHAPES[operator]}."),
            parameter("tile", "tensor(uint8)", "Packed signs, [ceil(tile_length / 8)]."),
            parameter("scale", "T", "Scales, [C], C >= 1; negative and zero entries are allowed."),
            parameter("bias", "T", "Added to each output, [N].", param_option=option),
        ],
        outputs=[parameter("Y", "T", f"Result, {_Y_SHAPES[operator]}.")],
        type_constraints=[
            ("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "Floating point types.")
        ],
        attributes=[
            defs.OpSchema.Attribute(name, getattr(kinds, kind), meaning, required=True)
            if default is None
            else defs.OpSchema.Attribute(
                name, onnx.helper.make_attribute(name, default, attr_type=_PROTO[kind]), meaning
            )
            for name, kind, default, meaning in attributes_of(operator)
        ],
    )
    schema.set_type_and_shape_inference_function(infer)
    return schema


_PROTO = {kind: getattr(onnx.AttributeProto, kind) for kind in ("INT", "INTS", "FLOAT", "STRING")}


def _infer_gemm(context: Any) -> None:
    x, shape = _start_inference(context)
    if shape is None or len(shape) != 2:
        return
    transposed = _int(context, "transB", 1)
    result = onnx.TypeProto()
    result.CopyFrom(x)
    dims = result.tensor_type.shape.dim
    if not dims:
        return
    outputs, inputs = shape if transposed else reversed(shape)
    _require_extent(dims[-1], inputs, "inputs")
    dims[-1].Clear()
    dims[-1].dim_value = outputs
    context.set_output_type(0, result)


def _infer_conv(context: Any) -> None:
    x, shape = _start_inference(context)
    if shape is None or len(shape) != len(x.tensor_type.shape.dim):
        return
    axes = len(shape) - 2
    auto_pad = _attribute(context, "auto_pad")
    mode = onnx.helper.get_attribute_value(auto_pad).decode() if auto_pad else "NOTSET"
    strides = _ints(context, "strides", [1] * axes)
    dilations = _ints(context, "dilations", [1] * axes)
    pads = _ints(context, "pads", [0] * 2 * axes)
    result = onnx.TypeProto()
    result.CopyFrom(x)
    dims = result.tensor_type.shape.dim
    _require_extent(dims[1], shape[1] * _int(context, "group", 1), "channels")
    dims[1].Clear()
    dims[1].dim_value = shape[0]
    for axis in range(axes):
        dim = dims[axis + 2]
        extent = dim.dim_value if dim.HasField("dim_value") else None
        dim.Clear()
        if extent is None:
            continue
        if mode.startswith("SAME"):
            dim.dim_value = -(-extent // strides[axis])
            continue
        reach = dilations[axis] * (shape[axis + 2] - 1) + 1
        padded = extent + pads[axis] + pads[axis + axes]
        dim.dim_value = max(0, (padded - reach) // strides[axis] + 1)
    context.set_output_type(0, result)


def _require_extent(dim: onnx.TensorShapeProto.Dimension, extent: int, meaning: str) -> None:
    if dim.HasField("dim_value") and dim.dim_value != extent:
        raise onnx.shape_inference.InferenceError(
            f"X has {dim.dim_value} {meaning} where weight_shape asks for {extent}"
        )


def _start_inference(context: Any) -> tuple[onnx.TypeProto, list[int] | None]:
    """Copy X's element type to Y; give X's type and, if both shapes are known, the weight's."""
    x = context.get_input_type(0)
    kind = onnx.TypeProto()
    kind.tensor_type.elem_type = x.tensor_type.elem_type
    context.set_output_type(0, kind)
    if not x.tensor_type.HasField("shape"):
        return x, None
    return x, _ints(context, "weight_shape", [])


def _attribute(context: Any, name: str) -> onnx.AttributeProto | None:
    return context.get_attribute(name)


def _ints(context: Any, name: str, default: list[int]) -> list[int]:
    attribute = _attribute(context, name)
    return list(attribute.ints) if attribute and attribute.ints else default


def _int(context: Any, name: str, default: int) -> int:
    attribute = _attribute(context, name)
    return attribute.i if attribute else default


def attribute_values(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Drop attributes without a value, so that the function body leaves them to their default."""
    return {name: value for name, value in attributes.items() if value not in (None, ())}
