"""Fat binaries: what they hold, and what becomes of bad input."""

import os
import struct

import pytest
import tvm_ffi
from helpers.cuda_library import export_function

from tbn_compile.errors import ModelError, UsageError
from tbn_compile.targets.cuda import compilation
from tbn_compile.targets.cuda.compilation import (
    ARCHITECTURES,
    compile_fatbin,
    compile_for,
    machine_code,
)
from tbn_compile.targets.cuda.fatbin import MAGIC, Entry, read_entries
from tbn_compile.targets.cuda.tiled_gemm import GemmProblem, gemm_function

HOOK = "tvm_callback_cuda_postproc"
KERNEL = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2.f; }'


def build(tmp_path, architectures, batch=None):
    problem = GemmProblem("float16", batch, rows=64, copies=4, inputs=256)
    function = gemm_function(problem, architectures)
    return export_function(tmp_path, function, architectures).read_bytes()


def entries_of(library):
    assert library.count(MAGIC + struct.pack("<H", 1)) == 1
    return read_entries(library[library.index(MAGIC) :])


def test_machine_code_for_each_architecture_and_ptx_for_newer_ones():
    entries = read_entries(compile_fatbin(KERNEL, ["90", "80"]))
    assert set(entries) == {Entry("cubin", 80), Entry("cubin", 90), Entry("ptx", 90)}


def test_library_holds_machine_code_and_no_source(tmp_path):
    library = build(tmp_path, ["80", "86", "89", "90"])
    cubins = {entry.architecture for entry in entries_of(library) if entry.kind == "cubin"}
    assert cubins == {80, 86, 89, 90}
    assert Entry("ptx", 90) in entries_of(library)
    assert b"__global__" not in library
    assert struct.pack("<Q", 4) + b"fbin" in library


@pytest.mark.parametrize("batch", [None, 1, 16, 64, 5000])
def test_hopper_kernels_compile(tmp_path, batch):
    entries = entries_of(build(tmp_path, ["90"], batch))
    assert set(entries) == {Entry("cubin", 90), Entry("ptx", 90)}


def test_the_same_source_gives_the_same_bytes(tmp_path):
    first, second = (build(tmp_path, ["80"], 8) for _ in range(2))
    assert first[first.index(MAGIC) :][:4096] == second[second.index(MAGIC) :][:4096]


def test_code_for_90_has_the_instructions_of_hopper():
    guarded = f"#ifdef __CUDA_ARCH_FEAT_SM90_ALL\n{KERNEL}\n#endif"
    assert b"twice" in compile_fatbin(guarded, ["90"])
    assert b"twice" not in compile_fatbin(guarded, ["80", "89"])


@pytest.mark.parametrize("names", [["sm_90"], ["75"], ["90a"], ["90\n"], []])
def test_unknown_architectures_list_the_valid_ones(names):
    with pytest.raises(UsageError, match=", ".join(ARCHITECTURES)):
        compile_fatbin(KERNEL, names)


def test_a_missing_compiler_names_both_ways_to_get_one(monkeypatch):
    monkeypatch.setattr(compilation, "_find_nvcc", lambda: None)
    monkeypatch.setattr(compilation, "_find_nvrtc", lambda: None)
    with pytest.raises(UsageError, match=r"nvcc is on PATH.*pip install tbn-compile\[cuda\]"):
        compile_fatbin(KERNEL, ["80"])


def test_source_that_does_not_compile():
    with pytest.raises(ModelError, match="(nvcc|NVRTC) cannot compile the kernels: .*error"):
        compile_fatbin("not CUDA", ["80"])


def test_hook_and_environment_are_put_back(monkeypatch):
    monkeypatch.setenv("TVM_COMPILE_FORCE_FALLBACK", "0")
    with machine_code(["80"]):
        assert tvm_ffi.get_global_func(HOOK, allow_missing=True)
        assert os.environ["TVM_COMPILE_FORCE_FALLBACK"] == "1"
    assert tvm_ffi.get_global_func(HOOK, allow_missing=True) is None
    assert os.environ["TVM_COMPILE_FORCE_FALLBACK"] == "0"


@pytest.fixture
def gpu_module():
    """Stands for what TVM makes modules with where there is a GPU; holds what reached it."""
    name, seen = "ffi.Module.create.cuda", []
    before = tvm_ffi.get_global_func(name, allow_missing=True)
    tvm_ffi.register_global_func(name, lambda *module: seen.append(module), override=True)
    yield seen
    if before is None:
        tvm_ffi.remove_global_func(name)
    else:
        tvm_ffi.register_global_func(name, before, override=True)


def test_a_gpu_here_changes_nothing(tmp_path, gpu_module):
    library = build(tmp_path, ["80"], 8)
    assert set(entries_of(library)) == {Entry("cubin", 80), Entry("ptx", 80)}
    assert not gpu_module


def test_a_search_compiles_as_the_artifact_is():
    before = tvm_ffi.get_global_func("tvm_callback_cuda_compile")
    try:
        compile_for(["80"])
        code = tvm_ffi.get_global_func("tvm_callback_cuda_compile")(KERNEL)
    finally:
        tvm_ffi.register_global_func("tvm_callback_cuda_compile", before, override=True)
    assert set(read_entries(bytes(code))) == {Entry("cubin", 80), Entry("ptx", 80)}


@pytest.mark.parametrize("content", [b"", b"\x7fELF" * 8, MAGIC])
def test_what_is_no_fat_binary_is_refused(content):
    with pytest.raises(ModelError, match="no fat binary"):
        read_entries(content)


def test_a_fat_binary_that_is_cut_short_is_refused():
    content = compile_fatbin(KERNEL, ["80"])
    with pytest.raises(ModelError, match="cut short"):
        read_entries(content[:-100])
