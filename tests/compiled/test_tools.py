"""tbn-validate and tbn-benchmark on compiled libraries."""

import json

import onnx
import pytest
from typer.testing import CliRunner

from tbn_compile.benchmarking import BenchmarkReport, Timing
from tbn_compile.command_line.benchmark import app as benchmark
from tbn_compile.command_line.validate import app as validate
from tbn_compile.tables import benchmark_table


def invoke(app, *arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "160"})


@pytest.fixture
def wrong_model(example, tmp_path):
    """The model with one bias changed: the artifact is not its own any more."""
    model = onnx.load(example.model)
    bias = next(each for each in model.graph.initializer if len(each.dims) == 1)
    values = onnx.numpy_helper.to_array(bias) + 100
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "mlp.onnx")
    return tmp_path / "mlp.onnx"


def test_a_compiled_model_passes(example):
    done = invoke(validate, example.model, example.artifact, "--input-dim", "batch=3", "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert [output["runtime"] for output in report["outputs"]] == ["llvm"]
    assert report["outputs"][0]["tolerance"] == 2e-5


def test_an_artifact_of_another_model_fails(wrong_model, example):
    done = invoke(validate, wrong_model, example.artifact)
    assert done.exit_code == 1
    assert "Validation failed" in done.stdout


def test_other_inputs_are_bad_input(example, tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    onnx.save(model, tmp_path / "other.onnx")
    done = invoke(validate, tmp_path / "other.onnx", example.artifact)
    assert done.exit_code == 2
    assert "was not compiled from" in done.stderr


def test_benchmark_times_both(example):
    done = invoke(benchmark, example.model, example.artifact, "--runs", "3", "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert [timing["name"] for timing in report["timings"]] == ["original", "llvm"]
    assert (report["rounds"], report["artifact"]) == (3, "mlp.so")
    table = invoke(benchmark, example.model, example.artifact, "--runs", "2").stdout
    assert "compiled for this CPU" in table


@pytest.mark.parametrize("target", ["llvm", "cuda"])
def test_every_target_has_a_row(target):
    report = BenchmarkReport("model.onnx", "model.so", 2, 1, 1, 1, (Timing(target, 1, 1, 1, 1),))
    assert benchmark_table(report).row_count == 1


def test_stock_does_not_go_with_a_library(example):
    done = invoke(benchmark, example.model, example.artifact, "--stock")
    assert done.exit_code == 2
    assert "--stock" in done.stderr
