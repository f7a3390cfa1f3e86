"""The kernel for few rows of x: how it divides the work, what it asks of the device, results."""

import re
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
import tvm
from helpers.cuda_library import export_function

from tbn_compile.targets.cuda.compilation import compile_fatbin
from tbn_compile.targets.cuda.sources import GemvShape, gemv_finish_source, gemv_source
from tbn_compile.targets.cuda.tiled_gemm import (
    _HOPPER_MEMORY,
    _MEMORY,
    FEW_ROWS,
    GemmProblem,
    _gemv_shape,
    gemm_function,
    pack_words,
    sums_shape,
)

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
ELEMENTS = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float"}
TOLERANCE = {"float16": 6e-4, "bfloat16": 5e-3, "float32": 2e-6}
SHAPES = [GemvShape(1, 1, 16, 1, 1, 5), GemvShape(4, 2, 4, 8, 16, 3), GemvShape(2, 2, 8, 3, 5, 2)]
SMALL, ODD, LARGE = (8, 8), (1048, 2056), (4096, 16384)


def shape_of(dtype, lines, rows, inputs, memory):
    return _gemv_shape(GemmProblem(dtype, lines, rows, 4, inputs), lines, memory.most)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sources_agree_with_python_and_compile_for_any_architecture(dtype):
    source = ""
    for index, shape in enumerate(SHAPES):
        name = f"gemv_{index}"
        numbers = ", ".join(str(getattr(shape, field)) for field in shape.__dataclass_fields__)
        kind = f"tbn::Gemv<{ELEMENTS[dtype]}, {name}_activation, {numbers}>"
        source += gemv_source(name, shape, dtype, []) + gemv_finish_source(
            f"finish_{index}", shape.splits, dtype, []
        )
        source += f"""
static_assert({kind}::kSharedBytes == {shape.shared_bytes(dtype)});
static_assert({kind}::kThreads == {shape.threads} && {kind}::kRows == {shape.rows});
extern "C" __global__ void kernel_{index}(
    const void* x, float* sums, void* y, const unsigned* words, const float* scale, int batch) {{
  extern __shared__ __align__(16) unsigned char shared[];
  {name}(x, sums, words, scale, scale, shared, batch, 64, 2, 64);
  finish_{index}(sums, y, scale, scale, batch, 64, 2);
}}
"""
    compile_fatbin(source, ["80", "90"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "inputs"), [SMALL, ODD, LARGE, (64, 128), (16384, 1024), (48, 9000)]
)
@pytest.mark.parametrize("lines", [1, 4, 5, 16])
@pytest.mark.parametrize("memory", [_MEMORY, _HOPPER_MEMORY])
def test_shapes_fit_the_hardware(dtype, rows, inputs, lines, memory):
    shape = shape_of(dtype, lines, rows, inputs, memory)
    assert shape.shared_bytes(dtype) <= memory.most
    assert shape.stages >= 2
    assert shape.threads <= 512
    assert shape.row_warps == 1 or shape.input_warps < 16
    assert lines == shape.lines


@pytest.mark.parametrize(("lines", "rows"), [(1, 4096), (1, 2048), (16, 4096), (16, 2048)])
def test_large_layers_get_a_block_for_each_multiprocessor(lines, rows):
    shape = shape_of("float16", lines, rows, 16384, _HOPPER_MEMORY)
    assert rows // shape.rows * shape.splits == 128
    assert shape.threads == 512


def test_short_x_is_finished_in_one_launch_and_long_x_in_two():
    for batch, launches in ((4, 1), (5, 2)):
        text = gemm_function(GemmProblem("float16", batch, 4096, 4, 4096), ["80"]).script()
        assert text.count('T.launch_thread("blockIdx.x"') == launches


@pytest.mark.parametrize(("architectures", "early"), [(["90"], True), (["80"], False)])
def test_only_code_that_waits_may_start_early(architectures, early):
    function = gemm_function(GemmProblem("float16", None, 64, 4, 256), architectures)
    assert ("tirx.kernel_launch_params" in function.attrs) == early
    text = function.script()
    assert text.count("wait_for_previous();") >= text.count('T.launch_thread("blockIdx.x"')


def compiled(folder, function, architectures):
    """A module with the function `main`."""
    return tvm.runtime.load_module(str(export_function(folder, function, architectures)))


def sums_of(problem, device):
    shape = sums_shape(problem)
    return [] if shape is None else [tvm.runtime.empty(shape, "float32", device)]


def test_static_sums_are_the_callers_memory_because_graphs_keep_its_address():
    problem = GemmProblem("float16", 8, 4096, 4, 4096)
    function = gemm_function(problem, ["80", "90"])
    assert sums_shape(problem)[1:] == (8, 4096)
    assert len(function.params) == 6
    assert "alloc_buffer" not in re.sub(r'alloc_buffer\([^\n]*scope="shared', "", function.script())
    assert sums_shape(GemmProblem("float16", None, 4096, 4, 4096)) is None
    assert sums_shape(GemmProblem("float16", 4, 4096, 4, 4096)) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inputs"), [SMALL, ODD])
@pytest.mark.parametrize("fixed", [None, 1, 11])
@pytest.mark.parametrize("architectures", [["90"], ["80"]])
def test_results_are_right_and_the_same_each_time(
    tmp_path, dtype, rows, inputs, fixed, architectures
):
    problem = GemmProblem(dtype, fixed, rows, 3, inputs)
    main = compiled(tmp_path, gemm_function(problem, architectures), architectures)
    random, device = np.random.default_rng(rows), tvm.cuda(0)
    signs = random.random((rows, inputs)) < 0.5
    scale, bias = random.uniform(0.5, 2, (2, 3 * rows)).astype(np.float32)
    constants = [tvm.runtime.tensor(value, device) for value in (pack_words(signs), scale, bias)]
    weight = np.tile(np.where(signs, 1.0, -1.0), (3, 1)) * scale[:, None].astype(np.float64)
    for batch in (1, 4, 5, 16) if fixed is None else (fixed,):
        x = random.standard_normal((batch, inputs)).astype(DTYPES[dtype])
        results = []
        for _ in range(3):
            y = tvm.runtime.tensor(np.full((batch, 3 * rows), np.nan, DTYPES[dtype]), device)
            main["main"](tvm.runtime.tensor(x, device), *constants, y, *sums_of(problem, device))
            results.append(y.numpy())
        reference = x.astype(np.float64) @ weight.T + bias
        error = np.linalg.norm(results[0].astype(np.float64) - reference)
        assert error < TOLERANCE[dtype] * np.linalg.norm(reference)
        assert all(np.array_equal(results[0], again) for again in results[1:])


@pytest.mark.gpu
def test_a_layer_waits_for_the_one_before_it(tmp_path):
    random = np.random.default_rng(0)
    size, device = 2048, tvm.cuda(0)
    problem = GemmProblem("float32", FEW_ROWS, size // 2, 2, size)
    main = compiled(tmp_path, gemm_function(problem, ["90"]), ["90"])["main"]
    signs = random.random((size // 2, size)) < 0.5
    scale = np.full(size, size**-0.5, np.float32)
    constants = [
        tvm.runtime.tensor(value, device) for value in (pack_words(signs), scale, 0 * scale)
    ]
    x = random.standard_normal((FEW_ROWS, size)).astype(np.float32)
    chain = [tvm.runtime.tensor(x, device)] + [
        tvm.runtime.tensor(np.full_like(x, np.nan), device) for _ in range(12)
    ]
    for source, target in pairwise(chain):
        main(source, *constants, target, *sums_of(problem, device))
    weight = np.tile(np.where(signs, 1.0, -1.0), (2, 1)) * scale[:, None].astype(np.float64)
    reference = x.astype(np.float64)
    for _ in chain[1:]:
        reference = reference @ weight.T
    error = np.linalg.norm(chain[-1].numpy() - reference) / np.linalg.norm(reference)
    assert error < 1e-5
