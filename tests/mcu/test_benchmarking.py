"""What `tbn-benchmark --board` reports."""

import json
from dataclasses import replace

import pytest
from helpers.board_program import board_program
from typer.testing import CliRunner

from tbn_compile import ModelError
from tbn_compile.command_line.benchmark import app
from tbn_compile.targets.mcu import benchmarking
from tbn_compile.targets.mcu.archive.archive import write_archive


@pytest.fixture
def archive(tmp_path):
    write_archive(board_program(), tmp_path / "small.tar")
    return tmp_path / "small.tar"


@pytest.fixture
def dense(monkeypatch):
    """Stand in for compiling the dense network: a program with ten times the work."""
    body = "for (int32_t n = 0; n < 8000; n++) { y[n % 8] = x[n % 8]; }"

    def set_program(result):
        def compile_dense(*_):
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(benchmarking, "compile_dense_program", compile_dense)

    set_program(board_program(body))
    return set_program


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_json(archive, dense):
    done = invoke("model.onnx", archive, "--board", "mps2-an386", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report.keys() == {
        "schema_version", "model", "board", "core", "programs", "dense_problem",
    }  # fmt: skip
    assert (report["schema_version"], report["board"], report["core"]) == (
        1, "mps2-an386", "cortex-m4",
    )  # fmt: skip
    tiled, other = report["programs"]
    assert (tiled["name"], other["name"], report["dense_problem"]) == ("tiled", "dense", None)
    assert tiled.keys() == {
        "name", "counts", "executor", "stack_bytes", "sections", "operators",
    }  # fmt: skip
    assert tiled["sections"].keys() == {"text", "rodata", "data", "bss", "io"}
    assert [operator["layer"] for operator in tiled["operators"]] == ["copy", "custom"]
    for figure in ("instructions", "loads", "stores"):
        parts = [operator["counts"][figure] for operator in tiled["operators"]]
        assert tiled["counts"][figure] == sum(parts) + tiled["executor"][figure]
    for operator in tiled["operators"]:
        assert 0 < operator["code_bytes"] < tiled["sections"]["text"]
        assert operator["workspace_bytes"] == 32
    assert other["counts"]["instructions"] > 10 * tiled["counts"]["instructions"]


def test_tables(archive, dense):
    done = invoke("model.onnx", archive, "--board", "mps2-an386")
    assert (done.exit_code, done.stderr) == (0, "")
    for text in ("copy", "custom", "executor", "tiled", "dense", "Against dense: "):
        assert text in done.stdout


def test_figures_are_the_same_in_every_run(archive, dense):
    once, again = (invoke("m.onnx", archive, "--board", "mps2-an386", "--json") for _ in range(2))
    assert once.stdout == again.stdout


def test_a_dense_network_that_does_not_fit(archive, dense):
    table = board_program(
        "y[1] = big[(int32_t)x[0]];", declarations="static const float big[300000] = {1.0f};"
    )
    dense(table)
    done = invoke("model.onnx", archive, "--board", "netduinoplus2")
    assert done.exit_code == 0
    assert "No dense program: does not fit board netduinoplus2: needs 1,20" in done.stdout
    dense(ModelError("cannot be compiled"))
    done = invoke("model.onnx", archive, "--board", "netduinoplus2", "--json")
    assert json.loads(done.stdout)["dense_problem"] == "cannot be compiled"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--board", "microbit"), "does not run code for cortex-m4"),
        (("--board", "nano"), "unknown board"),
        (("--board", "mps2-an386", "--stock"), "do not go with --board"),
        (("--board", "mps2-an386", "--runs", "5"), "do not go with --board"),
    ],
)
def test_bad_usage(archive, dense, arguments, message):
    done = invoke("model.onnx", archive, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_hostile_layer_names(tmp_path, dense):
    program = board_program()
    name = "\x1b[31m\n[bold]" + "y" * 10_000
    operators = tuple(replace(operator, layer=name) for operator in program.operators)
    write_archive(replace(program, operators=operators), tmp_path / "small.tar")
    done = invoke("model.onnx", tmp_path / "small.tar", "--board", "mps2-an386")
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert len(done.stdout) < 4000


def test_a_model_is_compiled_and_measured_beside_its_dense_self(models):
    done = invoke(models["mlp"], "--board", "mps2-an386", "--input-dim", "batch=1", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    tiled, dense = json.loads(done.stdout)["programs"]
    assert tiled["counts"]["instructions"] < 60_000
    assert dense["counts"]["instructions"] > 8 * tiled["counts"]["instructions"]
    assert tiled["sections"]["rodata"] < dense["sections"]["rodata"] / 80
