"""Models through target cuda: what the artifact holds, and how bad input is refused."""

import struct
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from helpers.architectures import ARCHITECTURES, export_architecture
from helpers.graphs import GraphBuilder
from helpers.weights import tiled_array
from typer.testing import CliRunner

from tbn_compile import CompileOptions, ModelError, UsageError, compile_model, load
from tbn_compile.command_line.benchmark import app as benchmark
from tbn_compile.command_line.validate import app as validate
from tbn_compile.targets import Tuning
from tbn_compile.targets.compiled import cuda_device, loader
from tbn_compile.targets.compiled.artifact import read_artifact
from tbn_compile.targets.compiled.cuda_device import runs_on
from tbn_compile.targets.compiled.tuning_file import read_tuning
from tbn_compile.targets.compiled.validation import validate_library
from tbn_compile.targets.cuda import compilation
from tbn_compile.targets.cuda.fatbin import MAGIC, read_entries

DENSE = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)


@pytest.fixture
def without_gpu(monkeypatch):
    """As on a machine that has none."""
    monkeypatch.setattr(cuda_device, "find_gpu", lambda: None)
    monkeypatch.setattr(loader, "find_gpu", lambda: None)


def compile_architecture(name, folder, **options):
    model, artifact = export_architecture(name, folder), folder / "model.so"
    return model, artifact, compile_model(model, "cuda", artifact, CompileOptions(**options))


def save(folder, body):
    text = f'<ir_version: 9, opset_import: ["" : 18]> {body}'
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    return folder / "model.onnx"


def tiled_layer(folder, dtype="float32", batch="n"):
    graph = GraphBuilder()
    x = graph.input("x", [batch, 96], dtype)
    weight = graph.weight("w", tiled_array((96, 64), 96 * 16, 0.25, dtype=np.dtype(dtype)))
    graph.node("MatMul", [x, weight], "y")
    onnx.save(graph.model("y", dtype=dtype, rank=2), folder / "model.onnx")
    return folder / "model.onnx"


def test_the_artifact_holds_machine_code_and_tells_of_it(tmp_path, without_gpu):
    _, artifact, report = compile_architecture("residual", tmp_path, cuda_arch=("90", "80"))
    manifest, content = read_artifact(artifact)
    assert b"__global__" not in content
    assert content.count(MAGIC + struct.pack("<H", 1)) == 1
    entries = read_entries(content[content.index(MAGIC) :])
    assert {entry.architecture for entry in entries if entry.kind == "cubin"} == {80, 90}
    assert any(entry.kind == "ptx" for entry in entries)
    assert (manifest.device, manifest.target) == ("cuda", "cuda")
    assert manifest.cuda_architectures == ("80", "90")
    assert set(manifest.tools) == {"tbn-compile", "tvm", "cuda"}
    assert manifest.inputs[0].shape == ("batch", 3, 12, 12)
    assert report.details["cuda_architectures"] == ["80", "90"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_small_architectures_compile_without_a_gpu(name, tmp_path, without_gpu):
    _, _, report = compile_architecture(name, tmp_path, cuda_arch=("80",))
    assert report.details["checked_on"] == "cpu"
    assert any("Not run: no GPU here for this code" in line for line in report.details_lines)


def test_default_architectures(tmp_path, without_gpu):
    _, artifact, _ = compile_architecture("uneven", tmp_path)
    assert read_artifact(artifact)[0].cuda_architectures == ("80", "86", "89", "90")


def test_steps_are_told(tmp_path, without_gpu):
    steps = []
    compile_architecture(
        "uneven", tmp_path, cuda_arch=("80",), progress=lambda *step: steps.append(step)
    )
    assert ("compile", 0, 2) in steps
    assert ("check", 1, 2) in steps


def test_an_unknown_architecture_lists_the_valid_ones(tmp_path):
    with pytest.raises(UsageError, match=r"unknown CUDA architecture '75'; use some of 80, 86"):
        compile_architecture("uneven", tmp_path, cuda_arch=("75",))
    assert not (tmp_path / "model.so").exists()


def test_an_element_type_without_kernels_lists_the_valid_ones(tmp_path):
    model = save(tmp_path, "g (double[4] x) => (double[4] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match=r"float64 cannot be compiled; use one of .*bfloat16"):
        compile_model(model, "cuda", tmp_path / "model.so")


def test_a_missing_compiler_names_both_ways_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "_find_nvcc", lambda: None)
    monkeypatch.setattr(compilation, "_find_nvrtc", lambda: None)
    with pytest.raises(UsageError, match=r"nvcc is on PATH, or `pip install tbn-compile\[cuda\]`"):
        compile_architecture("uneven", tmp_path, cuda_arch=("80",))


def test_other_targets_refuse_the_option(tmp_path):
    model = export_architecture("uneven", tmp_path)
    with pytest.raises(UsageError, match="target llvm has no option 'cuda_arch'"):
        compile_model(model, "llvm", options=CompileOptions(cuda_arch=("80",)))


def test_loading_without_a_gpu_says_what_is_missing(tmp_path, without_gpu):
    _, artifact, _ = compile_architecture("uneven", tmp_path, cuda_arch=("80",))
    with pytest.raises(ModelError, match=r"model.so needs an NVIDIA GPU; there is none, or no"):
        load(artifact)


def test_loading_on_an_older_gpu_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_device, "find_gpu", lambda: None)
    _, artifact, _ = compile_architecture("uneven", tmp_path, cuda_arch=("86",))
    monkeypatch.setattr(loader, "find_gpu", lambda: SimpleNamespace(compute_version="8.0"))
    monkeypatch.setattr(loader, "_open_machine", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(ModelError, match=r"for compute capability 86; this GPU's is 80"):
        load(artifact)


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ("8.0", ["80"], True),
        ("8.9", ["80"], True),
        ("8.0", ["86"], False),
        ("9.0", ["80"], True),
        ("9.0", ["80", "100"], False),
        ("9.0", ["90"], True),
        ("12.0", ["80", "90"], True),
        ("7.5", ["80"], False),
        ("9.0", [], False),
    ],
)
def test_which_gpus_run_what(capability, architectures, runs):
    assert runs_on(SimpleNamespace(compute_version=capability), architectures) == runs


@pytest.mark.gpu
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("batch", [1, 3])
def test_small_architectures(name, batch, tmp_path):
    model, artifact, report = compile_architecture(name, tmp_path)
    assert report.details["checked_on"] == "cuda"
    outcome = validate_library(model, artifact, input_dims={"batch": batch})
    assert outcome.passed, outcome.outputs


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [1, 16, 17, 300])
@pytest.mark.parametrize("architectures", [("80",), ("80", "90"), ("90",)])
def test_element_types(dtype, batch, architectures, tmp_path):
    model = tiled_layer(tmp_path, dtype)
    options = CompileOptions(cuda_arch=architectures)
    compile_model(model, "cuda", tmp_path / "model.so", options)
    report = validate_library(model, tmp_path / "model.so", input_dims={"n": batch})
    assert report.passed, report.outputs


@pytest.mark.gpu
def test_tensors_on_the_gpu_are_not_copied(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("PyTorch was built without CUDA")
    compile_model(tiled_layer(tmp_path), "cuda", tmp_path / "model.so")
    model = load(tmp_path / "model.so")
    x = torch.randn(5, 96, device="cuda")
    result = torch.from_dlpack(model(x))
    assert result.is_cuda
    np.testing.assert_allclose(result.cpu().numpy(), model(x.cpu().numpy()), rtol=1e-6)
    with pytest.raises(UsageError, match="on cuda"):
        model(x.cpu())


@pytest.mark.gpu
def test_a_graph_is_replayed_with_fresh_inputs(tmp_path):
    model = export_architecture("transformer", tmp_path)
    options = CompileOptions(input_dims={"batch": 2})
    compile_model(model, "cuda", tmp_path / "model.so", options)
    compiled = load(tmp_path / "model.so")
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((2, 16, 32), np.float32) for _ in range(3)]
    first = [compiled(x) for x in inputs]
    for x, result in zip(inputs, first, strict=True):
        np.testing.assert_array_equal(compiled(x), result)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.gpu
@pytest.mark.parametrize("tool", [validate, benchmark])
def test_tools_run_it_on_the_gpu(tool, tmp_path):
    model, artifact = tiled_layer(tmp_path), tmp_path / "model.so"
    compile_model(model, "cuda", artifact)
    arguments = [str(model), str(artifact), "--input-dim", "n=3"]
    done = CliRunner().invoke(tool, arguments, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.stderr
    assert {validate: "cuda", benchmark: "compiled for this GPU"}[tool] in done.stdout


@pytest.mark.gpu
def test_a_search_measures_on_the_gpu(tmp_path):
    graph = GraphBuilder()
    hidden = graph.node("MatMul", [graph.input("x", [8, 96]), graph.weight("w", DENSE)])
    onnx.save(graph.model(graph.node("Softmax", [hidden], "y"), rank=2), tmp_path / "model.onnx")
    artifact, file = tmp_path / "model.so", tmp_path / "found.json"
    compile_model(tmp_path / "model.onnx", "cuda", artifact, CompileOptions(tuning=Tuning(file, 2)))
    (search,) = read_tuning(file).searches
    assert (search.scheduled, search.failed) == (2, 0), search.first_failure
    assert validate_library(tmp_path / "model.onnx", artifact).passed


def test_layers_without_a_kernel_are_told(tmp_path, without_gpu):
    _, _, report = compile_architecture("series", tmp_path, cuda_arch=("80",))
    assert report.details["portable_layers"] == 1
    assert any(line.startswith("1 tiled layers take the portable") for line in report.details_lines)


def test_spatial_extents_must_be_known(tmp_path, without_gpu):
    graph = GraphBuilder()
    x = graph.input("x", [1, 8, "h", 6])
    weight = graph.weight("w", tiled_array((8, 8, 3, 3), 144, 0.5))
    onnx.save(graph.model(graph.node("Conv", [x, weight], "y"), rank=4), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"extent, h, that is known only .* --input-dim NAME=EXT"):
        compile_model(tmp_path / "model.onnx", "cuda", tmp_path / "model.so")


def test_what_no_schedule_of_tvms_suits_takes_another(tmp_path, without_gpu):
    graph = GraphBuilder()
    x = graph.input("x", [1, 8, 6, 6])
    dense = np.random.default_rng(0).standard_normal((8, 4, 3, 3), np.float32)
    y = graph.node("Conv", [x, graph.weight("w", dense)], group=2)
    graph.node("ReduceMean", [y], "z", keepdims=0)
    onnx.save(graph.model("z", rank=0), tmp_path / "model.onnx")
    options = CompileOptions(cuda_arch=("80",))
    assert compile_model(tmp_path / "model.onnx", "cuda", tmp_path / "model.so", options)


@pytest.mark.parametrize("target", ["llvm", "cuda"])
def test_bfloat16_is_compiled_and_told_not_compared(target, tmp_path, without_gpu):
    model = save(tmp_path, "g (bfloat16[n, 4] x) => (bfloat16[n, 4] y) { y = Relu(x) }")
    report = compile_model(model, target, tmp_path / "model.so")
    assert any(line.startswith("Not compared") for line in report.details_lines)
