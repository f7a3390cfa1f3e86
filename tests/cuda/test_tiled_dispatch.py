"""Which kernels a function holds for which architectures, and the choice when it is called."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder

from tbn_compile.targets.cuda.launching import is_compute_capability
from tbn_compile.targets.cuda.sources import ImagesLayout, MatrixLayout, mma_source
from tbn_compile.targets.cuda.tiled_gemm import GemmProblem, gemm_function
from tbn_compile.targets.cuda.tiled_mma import _COPIED, _FETCHED, choose_shape

DEVICE_QUESTION = "runtime.GetDeviceAttr"


def kernels_of(problem, architectures):
    text = gemm_function(problem, architectures).script()
    names = ("tiled_gemm_", "tiled_gemv_", "tiled_mma_")
    return {name.rstrip("_") for name in names if f"{name}" in text}


@pytest.fixture
def device_of():
    """Sets the compute capability that TVM's runtime tells."""
    previous = tvm_ffi.get_global_func(DEVICE_QUESTION)

    def answer(version):
        tvm_ffi.register_global_func(DEVICE_QUESTION, lambda *_: version, override=True)

    yield answer
    tvm_ffi.register_global_func(DEVICE_QUESTION, previous, override=True)


@pytest.mark.parametrize(
    ("version", "expected"), [("9.0", 1), ("8.0", 0), ("8.9", 0), ("10.0", 0), ("9.01", 0)]
)
def test_the_device_is_asked_when_the_function_is_called(device_of, version, expected):
    device_of(version + "\0" * 8)  # long enough to be an object, as the CUDA runtime gives it
    with IRBuilder() as built, builder.prim_func():
        handle = builder.arg("result", T.handle())
        result = T.match_buffer(handle, (1,), "int64")
        with T.If(is_compute_capability("9.0")):
            with T.Then():
                T.buffer_store(result, tirx.IntImm("int64", 1), [0])
            with T.Else():
                T.buffer_store(result, tirx.IntImm("int64", 0), [0])
    function = built.get().with_attr("global_symbol", "main")
    library = tvm.compile(tvm.IRModule({"main": function}), target="llvm")
    written = tvm.runtime.tensor(np.full(1, -1, dtype=np.int64))
    library["main"](written)
    device_of("7.5" + "\0" * 8)
    library["main"](written)
    assert written.numpy()[0] == expected


def test_hopper_is_served_beside_the_others():
    problem = GemmProblem("float16", 8192, 512, 4, 1024)
    assert kernels_of(problem, ["80", "86"]) == {"tiled_mma"}
    assert kernels_of(problem, ["80", "90"]) == {"tiled_gemm", "tiled_mma"}
    assert kernels_of(problem, ["90"]) == {"tiled_gemm", "tiled_mma"}


def test_tiles_too_few_for_hopper_go_to_the_general_kernel():
    problem = GemmProblem("float16", 65, 768, 4, 1024)
    assert kernels_of(problem, ["80", "90"]) == {"tiled_mma"}


def test_a_dynamic_batch_holds_kernels_for_few_and_many_rows():
    problem = GemmProblem("bfloat16", None, 512, 4, 1024)
    assert kernels_of(problem, ["80"]) == {"tiled_gemv", "tiled_mma"}
    assert kernels_of(problem, ["90"]) == {"tiled_gemm", "tiled_gemv", "tiled_mma"}


@pytest.mark.parametrize("sizes", [(10, 1, 1024), (512, 4, 147)])
def test_ragged_sizes_are_served(sizes):
    assert kernels_of(GemmProblem("float16", 64, *sizes), ["80", "90"]) == {"tiled_mma"}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("rows", [1, 10, 64, 768, 4096])
@pytest.mark.parametrize("columns", [1, 65, 12608, 2**20])
def test_shapes_fit_every_architecture(dtype, rows, columns):
    problem = GemmProblem(dtype, columns, rows, 4, 1024).mma()
    shape = choose_shape(problem, columns)
    assert shape.shared_bytes(problem.layout) <= 99 * 1024
    assert shape.threads <= 512


def test_sources_agree_with_python_on_shared_memory():
    from tbn_compile.targets.cuda.compilation import compile_fatbin

    layouts = [
        MatrixLayout("float16", aligned_inputs=True, aligned_rows=True),
        MatrixLayout("float32", aligned_inputs=True, aligned_rows=False),
        ImagesLayout("bfloat16", whole_taps=False, aligned_positions=True),
        ImagesLayout("float32", whole_taps=True, aligned_positions=False),
    ]
    sources = []
    for layout in layouts:
        for shape in _COPIED if layout.copied else _FETCHED:
            name = f"kernel_{len(sources)}"
            source = mma_source(name, shape, layout, ())
            kind = source[source.rindex("tbn::MmaGemm<") : source.rindex(" gemm{")]
            sources.append(
                f"{source}\nstatic_assert({kind}::kSharedBytes == {shape.shared_bytes(layout)});\n"
                f"static_assert({kind}::kThreads == {shape.threads});\n"
                f"static_assert({kind}::kTileRows == {shape.tile_rows});\n"
                f"static_assert({kind}::kTileColumns == {shape.tile_columns});\n"
            )
    compile_fatbin("".join(sources), ["80", "90"])
