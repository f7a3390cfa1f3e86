"""Archives against their models: on boards, on the host, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import pytest
from helpers.mcu_program import SMALL_PROGRAM
from typer.testing import CliRunner

from tbn_compile.command_line.validate import app
from tbn_compile.targets.mcu.archive.archive import write_archive
from tbn_compile.targets.mcu.validation import validate_archive

MODEL = """g (float[{batch}, 8] x) => (float[{batch}, 4] y) {{
  a, b = Split <axis = 1, num_outputs = 2> (x)
  d = Sub(a, b)
  y = Relu(d)
}}"""


@pytest.fixture
def save(tmp_path):
    """Write the small program's model, or one with another extent of the batch."""

    def write(batch="1", text=MODEL):
        body = text.format(batch=batch)
        model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {body}')
        onnx.save(model, tmp_path / "small.onnx")
        return tmp_path / "small.onnx"

    return write


@pytest.fixture
def archive(tmp_path):
    """Write the small program for a core, with a change to its kernels."""

    def write(core="cortex-m4", old="", new="", **changes):
        kernels = SMALL_PROGRAM.sources["default_lib1.c"]
        assert old in kernels
        sources = {**SMALL_PROGRAM.sources, "default_lib1.c": kernels.replace(old, new)}
        program = replace(SMALL_PROGRAM, core=core, sources=sources, **changes)
        write_archive(program, tmp_path / "small.tar")
        return tmp_path / "small.tar"

    return write


def invoke(*arguments):
    arguments = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})


@pytest.mark.parametrize(
    ("core", "board"), [("cortex-m0plus", "microbit"), ("rv32imafc", "virt-rv32imafc")]
)
def test_a_right_archive_passes_on_a_board(save, archive, core, board):
    done = invoke(save(), archive(core), "--board", board)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"board {board}" in done.stdout
    assert "Validation passed on 3 random input sets" in done.stdout


def test_a_portable_archive_runs_on_the_host(save, archive):
    done = invoke(save(), archive("c"))
    assert (done.exit_code, done.stderr) == (0, "")
    assert "host" in done.stdout


def test_json(save, archive):
    done = invoke(save(), archive(), "--board", "mps2-an386", "--json", "--seed", "4")
    report = json.loads(done.stdout)
    assert (report["passed"], report["seed"], report["input_sets"]) == (True, 4, 3)
    (output,) = report["outputs"]
    assert (output["tensor"], output["runtime"]) == ("y", "board mps2-an386")
    assert (output["tolerance"], output["max_to_largest"]) == (1e-5, 0)


def test_a_board_of_the_user(save, archive, tmp_path):
    profile = tmp_path / "mine.toml"
    profile.write_text(
        'description = "mine"\ncore = "cortex-m4"\nclock_hz = 1\n[flash]\norigin = 0\n'
        "size = 65536\n[ram]\norigin = 0x20000000\nsize = 8192\n[emulator]\n"
        'machine = "mps2-an386"\n'
    )
    assert invoke(save(), archive(), "--board", profile).exit_code == 0


@pytest.mark.parametrize(("new", "status"), [("x[i] * 1.00002f", 1), ("x[i] * 1.000002f", 0)])
def test_the_tolerance_is_a_share_of_the_largest_output(save, archive, tmp_path, new, status):
    np.savez(tmp_path / "x.npz", x=np.array([[8, 1, 1, 1, 0, 0, 0, 0]], np.float32))
    tar = archive("c", "x[i] - x[i + 4]", new)
    done = invoke(save(), tar, "--inputs", tmp_path / "x.npz")
    assert done.exit_code == status
    assert ("FAILED" in done.stdout) == (status == 1)
    assert f"Validation {'failed' if status else 'passed'} on given inputs" in done.stdout
    assert invoke(save(), tar, "--tolerance", "1e-3", "--inputs", tmp_path / "x.npz").exit_code == 0
    assert invoke(save(), tar, "--tolerance", "1e-7", "--inputs", tmp_path / "x.npz").exit_code == 1


def test_a_wrong_archive_fails_on_a_board(save, archive):
    report = validate_archive(save(), archive(old="> 0.0f", new="> 0.5f"), "mps2-an386")
    assert not report.passed
    assert report.outputs[0].max_to_largest > 0.01


def test_pinned_dimensions_of_the_archive_are_used(save, archive):
    assert invoke(save("n"), archive("c")).exit_code == 0
    done = invoke(save("n"), archive("c"), "--input-dim", "n=3")
    assert done.exit_code == 2
    assert "input 'x' is float32[1, 8], not float32[3, 8]" in done.stderr
    done = invoke(save("n"), archive("c"), "--input-dim", "m=3")
    assert "no input dimension 'm'; the model has: n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "code for cortex-m4 does not run here; boards that do: mps2-an386,"),
        (("--board", "microbit"), "microbit has a cortex-m0plus, which does not run code for cort"),
        (("--board", "nano"), "unknown board 'nano'"),
        (("--board", "mps2-an386", "--tolerance", "-1"), "a tolerance of 0 or more"),
        (("--board", "mps2-an386", "--inputs", "none.npz"), "none.npz: cannot be read"),
    ],
)
def test_bad_usage(save, archive, arguments, message):
    done = invoke(save(), archive(), *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_archive_of_another_model(save, archive):
    done = invoke(save(text=MODEL.replace("y", "z")), archive(), "--board", "mps2-an386")
    assert done.exit_code == 2
    assert "small.tar was not compiled from small.onnx: its outputs are y, not z" in done.stderr


def test_a_file_that_is_no_archive(save):
    model = save()
    done = invoke(model, model, "--board", "mps2-an386")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "small.onnx" in done.stderr


def test_code_that_faults(save, archive):
    tar = archive(old="u[i] = x[i] - x[i + 4];", new="__builtin_trap(); u[i] = x[i];")
    done = invoke(save(), tar, "--board", "mps2-an386")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "tbn-validate: error: board mps2-an386: the program faulted, exception 3\n"
    )
