"""`tbn-compile` for microcontrollers: what is refused leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tbn_compile.command_line.compile import app

MLP = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "mlp.onnx"
CNN = MLP.with_name("cnn.onnx")


def invoke(*arguments):
    arguments = [str(argument) for argument in (*arguments, "--input-dim", "batch=1")]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})


def refuse(tmp_path, model, *arguments):
    """The one line that refuses; nothing may have been written."""
    before = sorted(tmp_path.rglob("*"))
    done = invoke(model, "-o", tmp_path / "out.tar", *arguments)
    assert done.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_the_report_names_ram_flash_and_their_causes(tmp_path):
    done = invoke(MLP, "--target", "cortex-m4", "-o", tmp_path / "out.tar", "--board", "mps2-an386")

    assert done.exit_code == 0
    assert "RAM: workspace 1,024 B, most in node_linear; inputs and outputs 3,176 B" in done.stdout
    assert "Flash: constants 3,868 B, of which tiles and scales 3,316 B" in done.stdout
    assert "On mps2-an386: flash " in done.stdout


def test_a_model_that_does_not_fit_is_refused_with_the_figures(tmp_path):
    line = refuse(tmp_path, CNN, "--target", "cortex-m0plus", "--board", "microbit")

    assert "needs 29,032 bytes of RAM, of which it has 16,384" in line
    assert "the workspace takes 25,344 bytes of RAM, most of it in node_Conv_53" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "cortex-m4", "-O", "fast"), "choose ram, balanced, time"),
        (("--target", "cortex-m4", "--board", "nowhere"), "unknown board 'nowhere'"),
        (("--target", "cortex-m4", "--board", "microbit"), "does not run code for cortex-m4"),
        (("--target", "ort", "--board", "microbit"), "target ort has no option 'board'"),
        (("--target", "ort", "-O", "ram"), "target ort has no option 'optimize'"),
        (("--target", "cortex-m4", "--template", "qemu"), "give both or neither"),
    ],
)
def test_options_without_a_meaning(arguments, message, tmp_path):
    assert message in refuse(tmp_path, MLP, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--template", "make"), "unknown template 'make'; templates: arduino"),
        (("--template", "qemu"), "needs a board"),
        ((), "needs a board for cortex-m4"),
        (("--template", "arduino"), "is not empty"),
    ],
)
def test_a_project_that_cannot_be_written_is_refused_before_the_work(arguments, message, tmp_path):
    folder = tmp_path / "project"
    if message == "is not empty":
        folder.mkdir()
        (folder / "mine").touch()
    options = ("--target", "cortex-m4", "--emit-project", folder)

    assert message in refuse(tmp_path, MLP, *options, *arguments)


def test_a_project_needs_a_microcontroller(tmp_path):
    line = refuse(tmp_path, MLP, "--target", "ort", "--emit-project", tmp_path / "project")

    assert "needs a microcontroller for a target" in line


def test_an_archive_and_its_project(tmp_path):
    done = invoke(
        MLP, "--target", "c", "-o", tmp_path / "out.tar", "--emit-project", tmp_path / "project",
        "--validate",
    )  # fmt: skip

    assert done.exit_code == 0
    assert "Validation passed" in done.stdout
    assert (tmp_path / "project" / "CMakeLists.txt").exists()


def test_the_same_model_gives_the_same_bytes(tmp_path):
    archives = [tmp_path / "first.tar", tmp_path / "second.tar"]
    for archive in archives:
        assert invoke(MLP, "--target", "rv32imc", "-o", archive).exit_code == 0

    assert archives[0].read_bytes() == archives[1].read_bytes()
