"""Attention on its way to the CUDA kernel: what is recognised, where it lies, and what it gives."""

import re

import ml_dtypes
import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from helpers.cuda_library import export
from helpers.relax_calls import operators
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from tvm import relax, tirx
from tvm.ir import StringImm
from tvm.relax import op
from tvm.relax.frontend.onnx import from_onnx

from tbn_compile.passes.relax.affine_view import AffineView, view_of
from tbn_compile.targets.cuda import compilation
from tbn_compile.targets.cuda.attention import few_queries_shape, many_queries_shape
from tbn_compile.targets.cuda.attention_sources import (
    AttentionKind,
    AttentionShape,
    attention_source,
)
from tbn_compile.targets.cuda.compilation import compile_fatbin
from tbn_compile.targets.cuda.fuse_attention import FuseAttention

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}
HEADS, SIZE = 3, 8


def attention(query, key, value, mask=None, scale=0.5):
    """As exporters write it, of [..., tokens, SIZE]."""
    *batch, rows, columns = range(len(query.ty.shape.values))
    scores = op.matmul(query, op.permute_dims(key, [*batch, columns, rows]))
    scores = op.multiply(scores, relax.const(scale, query.ty.dtype))
    scores = scores if mask is None else op.add(scores, mask)
    return op.matmul(op.nn.softmax(scores), value)


def make_module(shapes, build, dtype="float32"):
    """Relax of `build(emit, *inputs)`; strings in shapes are symbols."""
    names = {name for shape in shapes for name in shape if isinstance(name, str)}
    symbols = {name: tirx.Var(name, "int64") for name in sorted(names)}
    inputs = [
        relax.Var(f"x{i}", relax.TensorType([symbols.get(e, e) for e in shape], dtype))
        for i, shape in enumerate(shapes)
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            output = builder.emit_output(build(builder.emit, *inputs))
        builder.emit_func_output(output)
    return builder.get()


def projected(emit, x):
    """Query, key and value [batch, heads, tokens, size], cut out of [batch, tokens, all of it]."""
    batch, tokens, _ = x.ty.shape.values
    parts = emit(op.reshape(x, [batch, tokens, 3, HEADS, SIZE]))
    parts = emit(op.permute_dims(parts, [2, 0, 3, 1, 4]))
    cut = [emit(op.strided_slice(parts, [0], [i], [i + 1])) for i in range(3)]
    return [emit(op.squeeze(each, [0])) for each in cut]


def self_attention(emit, x, mask=None):
    return op.permute_dims(emit(attention(*projected(emit, x), mask)), [0, 2, 1, 3])


def number(expression):
    value = tvm.sym.Analyzer().simplify(expression)
    return float(value.value) if isinstance(value, tirx.FloatImm) else int(value)


def launches(statement):
    """(blocks, variable of the block, arguments of the device function, source) of a kernel."""
    if isinstance(statement, tirx.IfThenElse):
        taken = number(statement.condition)
        return launches(statement.then_case if taken else statement.else_case)
    assert statement.attr_key == "thread_extent"
    call = statement.body.body.seq[-1].value
    arguments = [argument for argument in call.args if not isinstance(argument, StringImm)]
    source = max((str(a.value) for a in call.args if isinstance(a, StringImm)), key=len)
    return number(statement.value), statement.node.var, arguments, source


def substituted(expression, variable, value):
    """The number that an expression is for a value of its one variable."""
    constant = tirx.IntImm("int64", value)
    return number(
        tvm_ffi.structural_map(
            expression, (tirx.Var, lambda found: constant if found.same_as(variable) else found)
        )
    )


def emulate(function, tensors, symbols):
    """What the TIR function writes, block by block, with the kernel's meaning in numpy."""
    bound = [p for p in function.params if p.name in symbols]
    body = function.specialize({p: tirx.IntImm("int64", symbols[p.name]) for p in bound}).body
    blocks, block, arguments, source = launches(body)
    masked = len(tensors) == 5
    numbers = arguments[len(tensors) + 1 :]
    shape = re.search(r"tbn::Attention<\w+, (\d+), \w+, \w+, (\d+), (\d+), ", source)
    size, rows = int(shape[1]), 16 * int(shape[2]) * int(shape[3])
    flat = [tensor.reshape(-1) for tensor in tensors]
    for index in range(blocks):
        tile, queries, keys, scale, *places = (substituted(e, block, index) for e in numbers)
        mine = np.arange(tile * rows, min((tile + 1) * rows, queries))

        def places_of(which, lines, places=places):
            return places[2 * which] + lines[:, None] * places[2 * which + 1]

        every, columns = np.arange(keys), np.arange(size)
        query = flat[0][places_of(0, mine) + columns]
        key, value = (flat[i][places_of(i, every) + columns] for i in (1, 2))
        scores = scale * query @ key.T
        if masked:
            scores = scores + flat[3][places_of(3, mine) + every * places[-1]]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        output = places_of(len(tensors) - 1, mine) + columns
        flat[-1][output] = weights / weights.sum(-1, keepdims=True) @ value
    return tensors[-1]


def run_on_cpu(module, *inputs):
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    return machine["main"](*map(tvm.runtime.tensor, inputs)).numpy()


def run_emulated(module, inputs, symbols):
    """`main` of a fused module, with the emulation in the place of the kernel."""

    def emulated(*arguments):
        tensors = [a.numpy().astype(np.float64) for a in arguments if hasattr(a, "numpy")]
        tensors[-1][:] = np.nan
        arguments[-1].copyfrom(emulate(module["attention"], tensors, symbols).astype(np.float32))

    tvm_ffi.register_global_func("tests.attention", emulated, override=True)
    swapped = _CallEmulation(module).swapped()
    return run_on_cpu(swapped, *inputs)


@relax.expr_functor.mutator
class _CallEmulation(relax.PyExprMutator):
    def swapped(self):
        main = self.visit_expr(self.builder_.get()["main"])
        return tvm.IRModule({"main": main})

    def visit_call_(self, call):
        call = self.visit_expr_post_order(call)
        if call.op.name != "relax.call_tir":
            return call
        arguments = [a for a in call.args[1] if not isinstance(a.ty, tvm.ir.PrimType)]
        return op.call_dps_packed("tests.attention", relax.Tuple(arguments), call.ty)


def assert_same(module, shapes, symbols=None, leaves=()):
    """The fused module has one kernel and only `leaves` besides, and computes the same."""
    fused = FuseAttention()(module)
    assert [name for name in operators(fused) if name != "relax.reshape"] == [*leaves, "attention"]
    symbols = symbols or {}
    random = np.random.default_rng(0)
    inputs = [
        random.standard_normal([symbols.get(e, e) for e in shape]).astype(np.float32)
        for shape in shapes
    ]
    expected = run_on_cpu(module, *inputs)
    result = run_emulated(fused, inputs, symbols)
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)


def test_before_and_after():
    before = make_module([(2, 5, 3 * HEADS * SIZE)], self_attention)
    fused = FuseAttention()(before)
    x = relax.Var("x0", relax.TensorType([2, 5, 3 * HEADS * SIZE], "float32"))
    builder = relax.BlockBuilder()
    kernel = builder.add_func(fused["attention"], "attention")
    with builder.function("main", [x]):
        with builder.dataflow():
            result = relax.TensorType([2, 5, HEADS, SIZE], "float32")
            output = builder.emit_output(relax.call_tir(kernel, [x, x, x], result))
        builder.emit_func_output(output)
    tvm.ir.assert_structural_equal(fused, builder.get())


@pytest.mark.parametrize("symbols", [None, {"b": 2, "t": 5}, {"b": 30, "t": 70}])
def test_self_attention_reads_its_projection(symbols):
    shape = (2, 5, 3 * HEADS * SIZE) if symbols is None else ("b", "t", 3 * HEADS * SIZE)
    assert_same(make_module([shape], self_attention), [shape], symbols)


@pytest.mark.parametrize(
    "mask", [(5, 5), (1, 5), (5, 1), (5,), (2, 1, 1, 5), (HEADS, 5, 5), (2, HEADS, 5, 5)]
)
def test_masks_are_repeated(mask):
    shapes = [(2, 5, 3 * HEADS * SIZE), mask]
    assert_same(make_module(shapes, self_attention), shapes)


def test_attention_without_axes_before():
    shapes = [(20, SIZE), (9, SIZE), (9, SIZE)]
    assert_same(make_module(shapes, lambda _emit, *inputs: attention(*inputs)), shapes)


def test_one_key_and_value_for_all_heads():
    shapes = [(2, HEADS, 6, SIZE), (1, 7, SIZE), (2, 1, 7, SIZE)]

    def build(emit, query, key, value):
        key_columns = emit(op.permute_dims(key, [0, 2, 1]))
        weights = op.nn.softmax(op.matmul(query, key_columns))
        return op.matmul(weights, value)

    assert_same(make_module(shapes, build), shapes)


def test_groups_of_heads_share_keys():
    shapes = [(2, 6, 5, SIZE), (2, 3, 7, SIZE), (2, 3, 7, SIZE)]

    def build(emit, query, *others):
        repeated = (
            op.reshape(
                op.broadcast_to(op.expand_dims(other, 2), [2, 3, 2, 7, SIZE]), [2, 6, 7, SIZE]
            )
            for other in others
        )
        return attention(query, *(emit(each) for each in repeated))

    assert_same(make_module(shapes, build), shapes)


def test_keys_that_lie_in_columns_are_transposed_as_before():
    shapes = [(2, 6, SIZE), (2, SIZE, 7), (2, 7, SIZE)]

    def build(_emit, query, key, value):
        return op.matmul(op.nn.softmax(op.matmul(query, key)), value)

    assert_same(make_module(shapes, build), shapes, leaves=["relax.permute_dims"])


def test_what_is_no_view_is_computed_as_before():
    shapes = [(2, 5, 3 * HEADS * SIZE)]

    def build(emit, x):
        query, key, value = projected(emit, x)
        return attention(query, emit(op.nn.relu(key)), value)

    names = operators(FuseAttention()(make_module(shapes, build)))
    assert names[-2:] == ["relax.nn.relu", "attention"]
    leaves = [name for name in names[:-1] if name != "relax.reshape"]
    assert_same(make_module(shapes, build), shapes, leaves=leaves)


def test_a_projection_that_is_a_matrix_of_all_tokens():
    shape, symbols = ("b", "t", 3 * HEADS * SIZE), {"b": 2, "t": 5}

    def build(emit, x):
        batch, tokens, columns = x.ty.shape.values
        rows = emit(op.nn.relu(op.reshape(x, [batch * tokens, columns])))
        return self_attention(emit, emit(op.reshape(rows, [batch, tokens, columns])))

    assert_same(make_module([shape], build), [shape], symbols, leaves=["relax.nn.relu"])


@pytest.mark.parametrize("where", ["query", "key", "both", "divided", "twice"])
def test_the_scale_may_stand_anywhere(where):
    shapes = [(2, 6, SIZE), (2, 7, SIZE), (2, 7, SIZE)]

    def build(_emit, query, key, value):
        key, half = op.permute_dims(key, [0, 2, 1]), relax.const(0.5, "float32")
        query = op.multiply(query, half) if where in ("query", "both") else query
        key = op.multiply(half, key) if where in ("key", "both") else key
        scores = op.matmul(query, key)
        scores = op.divide(scores, half) if where in ("divided", "twice") else scores
        scores = op.divide(scores, op.sqrt(half)) if where == "twice" else scores
        return op.matmul(op.nn.softmax(scores), value)

    module = make_module(shapes, build)
    assert_same(module, shapes)
    source = FuseAttention()(module)["attention"].script()
    scale = {"query": 0.5, "key": 0.5, "both": 0.25, "divided": 2.0, "twice": 2 * 2**0.5}[where]
    assert float(re.search(r"T\.float32\(([^)]*)\)", source)[1]) == pytest.approx(scale)


def weights_used_twice(emit, query, key, value):
    scores = op.matmul(query, emit(op.permute_dims(key, [0, 2, 1])))
    weights = emit(op.nn.softmax(scores))
    return op.add(op.matmul(weights, value), op.sum(weights))


def softmax_of_another_axis(_emit, query, key, value):
    scores = op.matmul(query, op.permute_dims(key, [0, 2, 1]))
    return op.matmul(op.nn.softmax(scores, axis=1), value)


def negative_scale(_emit, query, key, value):
    return attention(query, key, value, scale=-1.0)


@pytest.mark.parametrize(
    ("build", "size", "dtype"),
    [
        (weights_used_twice, SIZE, "float32"),
        (softmax_of_another_axis, SIZE, "float32"),
        (negative_scale, SIZE, "float32"),
        (lambda _emit, *inputs: attention(*inputs), 257, "float32"),
        (lambda _emit, *inputs: attention(*inputs), SIZE, "float64"),
    ],
)
def test_what_there_is_no_kernel_for_is_left_alone(build, size, dtype):
    module = make_module([(2, 6, size), (2, 7, size), (2, 7, size)], build, dtype)
    tvm.ir.assert_structural_equal(FuseAttention()(module), module)


class _Projected(nn.Module):
    """Self-attention of [batch, tokens, 32] through `scaled_dot_product_attention`."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(32, 96)

    def forward(self, x, mask=None):
        batch, tokens, _ = x.shape
        parts = self.project(x).reshape(batch, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(*parts.unbind(0), attn_mask=mask)
        return heads.transpose(1, 2).reshape(batch, tokens, 32)


class _Attended(nn.Module):
    """Cross-attention of [batch, tokens, 32] through `nn.MultiheadAttention`."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x, y):
        return self.attend(x, y, y, need_weights=False)[0]


X, Y = torch.randn(2, 5, 32), torch.randn(2, 7, 32)


@pytest.mark.parametrize(
    ("make", "inputs", "dynamic", "opset"),
    [
        (_Projected, (X,), ({0: "b", 1: "t"},), 18),
        (_Projected, (X, torch.randn(2, 1, 5, 5)), None, 20),
        (_Attended, (X, Y), ({0: "b"}, {0: "b"}), 20),
        (_Attended, (X, Y), None, 18),
    ],
)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # PyTorch, of itself
@pytest.mark.filterwarnings("ignore:# The axis name. b will not be used")  # X and Y share it
def test_what_pytorch_exports_is_recognised(make, inputs, dynamic, opset):
    shapes = dynamic and tuple(
        {axis: torch.export.Dim(name, max=100) for axis, name in axes.items()} for axes in dynamic
    )
    torch.manual_seed(0)
    program = torch.onnx.export(
        make().eval(),
        inputs,
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=shapes,
        verbose=False,
    )
    module = from_onnx(program.model_proto, keep_params_in_input=False)
    module = relax.transform.CanonicalizeBindings()(module)
    names = operators(FuseAttention()(module))
    assert names.count("attention") == 1
    assert "relax.nn.softmax" not in names
    before = names[: names.index("attention")]
    assert not {"relax.strided_slice", "relax.take", "relax.squeeze"} & set(before)


def digits_to_places(view):
    """The place of every element, as an array of the view's shape."""
    places = np.array(view.offset)
    for axis in view.axes:
        line = np.zeros(1, int)
        for run in axis:
            line = np.add.outer(line, np.arange(run.extent) * run.stride).reshape(-1)
        places = np.add.outer(places, line)
    return places


@st.composite
def moves(draw):
    """An array of places in a root tensor, and the view that leads to it."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    places = np.arange(np.prod(shape)).reshape(shape)
    view = AffineView.of(relax.Var("x", relax.TensorType(shape, "float32")))
    for _ in range(draw(st.integers(0, 5))):
        axis = draw(st.integers(0, places.ndim - 1))
        extent = places.shape[axis]
        move = draw(st.sampled_from(["reshape", "permute", "slice", "broadcast"]))
        if move == "reshape":
            factors = draw(st.permutations([f for n in places.shape for f in split(n)]))
            cut = draw(st.integers(0, len(factors)))
            new = [int(np.prod(factors[:cut])), *factors[cut:]]
            moved, places_moved = view.reshaped(new), places.reshape(new)
            if moved is None:
                assert not numpy_reshapes(view, new)
                continue
        elif move == "permute":
            order = draw(st.permutations(range(places.ndim)))
            moved, places_moved = view.permuted(order), places.transpose(order)
        elif move == "slice":
            begin, last = draw(st.tuples(*[st.integers(0, extent - 1)] * 2))
            step = 1 if begin <= last else -1
            stop = None if last + step < 0 else last + step
            places_moved = places[(slice(None),) * axis + (slice(begin, stop, step),)]
            moved = view.sliced(axis, begin, step, places_moved.shape[axis])
            if moved is None:
                assert len(view.axes[axis]) > 1
                continue
        else:
            new = [2, *(3 if n == 1 else n for n in places.shape)]
            moved, places_moved = view.broadcast(new), np.broadcast_to(places, new)
        view, places = moved, places_moved
    return view, places


def numpy_reshapes(view, shape):
    """Whether numpy has such a view, and needs no copy to give it another shape."""
    if any(len(axis) > 1 for axis in view.axes):
        return False
    strides = [axis[0].stride if axis else 0 for axis in view.axes]
    byte = np.zeros(1, np.int8)
    array = np.lib.stride_tricks.as_strided(byte, view.shape, strides, writeable=False)
    try:
        np.reshape(array, shape, copy=False)
    except ValueError:
        return False
    return True


def split(extent):
    """Its prime factors."""
    for factor in range(2, extent + 1):
        if extent % factor == 0:
            return [factor, *split(extent // factor)]
    return []


@given(moves())
def test_views_lead_to_the_places_that_numpy_finds(moved):
    view, places = moved
    assert view.shape == list(places.shape)
    assert np.array_equal(digits_to_places(view), places)
    for index in {0, places.size // 2, places.size - 1}:
        every = view.place(tirx.IntImm("int64", index), range(len(view.axes)))
        assert number(every) == places.reshape(-1)[index]


def test_a_broadcast_that_does_not_fit():
    view = AffineView.of(relax.Var("x", relax.TensorType([2, 3], "float32")))
    assert view.broadcast([3]) is None
    assert view.broadcast([4, 3]) is None


@pytest.mark.parametrize(
    "move",
    [
        lambda x: op.split(x, 3, 1)[2],
        lambda x: op.split(x, [1, 4], 1)[1],
        lambda x: op.strided_slice(x, [1, 2], [-1, 1], [-9, 8], [-2, 3]),
        lambda x: op.take(x, relax.const(-2, "int64"), axis=1),
        op.permute_dims,
        op.flatten,
    ],
)
def test_operators_that_move_elements(move):
    module = make_module([(2, 6, 8)], lambda emit, x: emit(move(x)))
    values = relax.analysis.get_var2val(module["main"])

    def value_of(expression):
        while isinstance(expression, relax.Var) and expression in values:
            expression = values[expression]
        return expression

    view = view_of(module["main"].body.body, value_of)
    x = np.arange(96, dtype=np.float32).reshape(2, 6, 8)
    assert view.root.same_as(module["main"].params[0])
    with tvm.target.Target("llvm"):
        module = relax.transform.LegalizeOps({"relax.take": _wrapped_take})(module)
    assert np.array_equal(digits_to_places(view), run_on_cpu(module, x))


def _wrapped_take(builder, call):
    return builder.call_te(
        tvm.topi.take, call.args[0], call.args[1], int(call.attrs.axis), mode="wrap"
    )


def kernel(name, kind, shape):
    """A global function around the device function, and a check of what Python believes."""
    mask, pointer, places = ("const void* m, ", "m, ", "a, b, ") if kind.masked else ("", "", "")
    element = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float"}[kind.dtype]
    arguments = (kind.head_size, int(kind.aligned), int(kind.masked), *vars(shape).values())
    return f"""{attention_source(name, kind, shape)}
static_assert(tbn::Attention<{element}, {", ".join(map(str, arguments))}>::kSharedBytes
              == {shape.shared_bytes(kind)}, "");
extern "C" __global__ void __launch_bounds__({shape.threads}) kernel_{name}(
    const void* q, const void* k, const void* v, {mask}void* o, int n, float s, long long a,
    long long b) {{
  extern __shared__ unsigned char shared[];
  {name}(q, k, v, {pointer}o, shared, blockIdx.x, n, n, s, a, b, a, b, a, b, {places}a, b
         {", b" if kind.masked else ""});
}}
"""


@pytest.mark.parametrize("compiler", ["nvcc", "NVRTC"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sources_compile(monkeypatch, compiler, dtype):
    if compiler == "NVRTC":
        monkeypatch.setattr(compilation, "_find_nvcc", lambda: None)
    kinds = [AttentionKind(dtype, 16, True, False), AttentionKind(dtype, 20, False, True)]
    shapes = [AttentionShape(1, 1, 2, 16), AttentionShape(1, 2, 1, 16)]
    pairs = zip(kinds, shapes, strict=True)
    source = "".join(kernel(f"a{i}", *pair) for i, pair in enumerate(pairs))
    compile_fatbin(source, ["80", "90"])


@pytest.mark.parametrize("head_size", [1, 16, 64, 96, 128, 200, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_fit_the_hardware(dtype, head_size):
    kind = AttentionKind(dtype, head_size, aligned=True, masked=False)
    for tokens in (None, 0, 1, 65, 100, 1024):
        many = many_queries_shape(kind, tokens, tokens)
        for shape in (many, few_queries_shape(kind, tokens)):
            assert shape.shared_bytes(kind) <= 99 * 1024
            assert shape.threads <= 256
            assert shape.keys % 16 == 0


def test_a_whole_module_builds(tmp_path):
    module = FuseAttention()(make_module([("b", "t", 3 * HEADS * SIZE)], self_attention))
    assert b"__global__" not in export(tmp_path, module, ["80"]).read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 65), (64, 65), (2, 300)])
@pytest.mark.parametrize("masked", [False, True])
def test_results(tmp_path, dtype, batch, tokens, masked):
    shapes = [("b", "t", 3 * HEADS * SIZE)] + [("t", "t")] * masked
    module = FuseAttention()(make_module(shapes, self_attention, dtype))
    random, device = np.random.default_rng(0), tvm.cuda(0)
    x = random.standard_normal((batch, tokens, 3 * HEADS * SIZE)).astype(DTYPES[dtype])
    mask = np.triu(np.full((tokens, tokens), -np.inf), 1).astype(DTYPES[dtype])
    path = export(tmp_path, module, ["80", "90"])
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), device)
    inputs = [tvm.runtime.tensor(each, device) for each in (x, mask)[: 1 + masked]]
    y = machine["main"](*inputs).numpy().astype(np.float64)
    parts = x.astype(np.float64).reshape(batch, tokens, 3, HEADS, SIZE).transpose(2, 0, 3, 1, 4)
    scores = 0.5 * parts[0] @ parts[1].swapaxes(-1, -2) + (mask.astype(np.float64) if masked else 0)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    reference = (weights / weights.sum(-1, keepdims=True) @ parts[2]).swapaxes(1, 2)
    assert np.linalg.norm(y - reference) < TOLERANCE[dtype] * np.linalg.norm(reference)
