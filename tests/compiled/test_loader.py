"""Calls: whose memory is read, what comes back, what is refused."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
import tvm
import tvm_ffi

from tbn_compile import ModelError, UsageError, load
from tbn_compile.targets.compiled import loader
from tbn_compile.targets.compiled.artifact import pack_artifact, read_artifact


@pytest.fixture(scope="module")
def model(example):
    return load(example.artifact)


@pytest.fixture(scope="module")
def reference(example):
    session = onnxruntime.InferenceSession(str(example.model))
    return lambda x: session.run(None, {"input": x})[0]


def make(batch=2, shift=0):
    """float32[batch, 784] that begins `shift` elements behind a multiple of 64 bytes."""
    memory = np.random.default_rng(batch).standard_normal(batch * 784 + 32).astype(np.float32)
    start = (-memory.ctypes.data // 4) % 16 + shift
    return memory[start : start + batch * 784].reshape(batch, 784)


@pytest.mark.parametrize("batch", [1, 2, 5, 17])
def test_any_batch(model, reference, batch):
    np.testing.assert_allclose(model(make(batch)), reference(make(batch)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shift", [0, 1, 3, 8])
def test_any_alignment(model, reference, shift):
    x = make(3, shift)
    assert x.ctypes.data % 64 == 4 * shift
    np.testing.assert_allclose(model(x), reference(x), rtol=1e-4, atol=1e-3)


def test_inputs_by_name(model):
    np.testing.assert_array_equal(model(input=make()), model(make()))


def test_torch_tensors_come_back_as_dlpack(model):
    result = torch.from_dlpack(model(torch.from_numpy(make())))
    np.testing.assert_array_equal(result.numpy(), model(make()))


def test_inputs_are_viewed_and_not_copied(model, monkeypatch):
    seen = []
    main = model._main
    monkeypatch.setattr(model, "_main", lambda *tensors: seen.extend(tensors) or main(*tensors))
    x = make()
    model(x)
    assert seen[0].data_ptr() == x.ctypes.data


def test_results_of_a_call_outlive_the_next(model):
    first = model(make(2))
    kept = first.copy()
    model(make(2) * 3)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("inputs", "named", "problem"),
    [
        ((), {}, "give every input"),
        ((make(), make()), {}, "give every input"),
        ((make(),), {"input": make()}, "give every input"),
        ((), {"x": make()}, "inputs x were given; they are input"),
        ((make().astype(np.float64),), {}, r"'input' must be float32 \(batch, 784\), not float64"),
        ((make()[:, :5].copy(),), {}, r"not \(2, 5\)"),
        ((make()[0],), {}, r"not \(784,\)"),
        ((make()[:0],), {}, r"not \(0, 784\)"),
        ((make(4)[::2],), {}, "contiguous"),
        (([[1.0] * 784],), {}, "array or DLPack tensor"),
        (("text",), {}, "array or DLPack tensor"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(model, inputs, named, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        model(*inputs, **named)
    assert "\n" not in str(caught.value)


def test_a_processor_without_the_features_is_refused(example, monkeypatch):
    monkeypatch.setattr(loader, "present_features", lambda: frozenset({"sse3"}))
    monkeypatch.setattr("tvm.runtime.load_module", lambda _: pytest.fail("it was opened"))
    with pytest.raises(ModelError, match=r"this processor lacks avx.*; compile the model for it"):
        load(example.artifact)


def test_another_architecture_is_refused(example, monkeypatch):
    monkeypatch.setattr(loader, "architecture", lambda: "riscv64")
    with pytest.raises(ModelError, match="is code for .*, and this machine is riscv64"):
        load(example.artifact)


def test_a_device_that_is_not_there_is_refused(example, tmp_path, monkeypatch):
    manifest, content = read_artifact(example.artifact)
    library = content[: content.index(b'{\n  "schema_version"')]
    path = tmp_path / "model.so"
    path.write_bytes(pack_artifact(library, manifest.model_copy(update={"device": "cuda"})))
    monkeypatch.setattr("tvm.runtime.Device.exist", property(lambda _: False))
    with pytest.raises(ModelError, match="needs an NVIDIA GPU; there is none"):
        load(path)


def test_the_runtime_alone_is_enough(example):
    program = (
        "import sys, numpy, tbn_compile\n"
        "model = tbn_compile.load(sys.argv[1])\n"
        "print(model(numpy.ones((2, 784), numpy.float32)).shape)\n"
        "assert 'libtvm_compiler' not in open('/proc/self/maps').read()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(example.artifact)],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "(2, 10)\n", done.stderr


def test_a_gpu_input_must_be_aligned(example, monkeypatch):
    spec = read_artifact(example.artifact)[0].inputs[0]
    expected = loader._Input(spec, tvm.cuda(), is_apart=True)
    tensor = SimpleNamespace(
        dtype=tvm_ffi.dtype("float32"), device=tvm.cuda(), shape=(1, 784), data_ptr=lambda: 1028
    )
    monkeypatch.setattr(expected, "_view", lambda _: tensor)
    with pytest.raises(UsageError, match="must start at a multiple of 16 bytes on a GPU"):
        expected.checked(tensor, {})
    tensor.data_ptr = lambda: 1040
    assert expected.checked(tensor, {}) is tensor


@pytest.mark.parametrize("shift", [0, 1])
def test_arrays_are_copied_to_memory_apart_and_back(
    example, reference, tmp_path, monkeypatch, shift
):
    manifest, content = read_artifact(example.artifact)
    library = content[: content.index(b'{\n  "schema_version"')]
    path = tmp_path / "model.so"
    told = {"device": "cuda", "cuda_architectures": ("80",)}
    path.write_bytes(pack_artifact(library, manifest.model_copy(update=told)))
    monkeypatch.setattr(loader, "find_gpu", tvm.cpu)
    monkeypatch.setattr(loader, "runs_on", lambda *_: True)
    model, x = load(path), make(3, shift)
    placed = model.place({"input": x})["input"]
    assert placed.data_ptr() != x.ctypes.data
    for result in (model(x), np.from_dlpack(model(placed))):
        np.testing.assert_allclose(result, reference(x), rtol=1e-4, atol=1e-3)
