import io
import os
import subprocess
import sys

import pytest

from tbn_compile import compiler
from tbn_compile.command_line import common


def _fail_with(error):
    def fail(*_):
        raise error

    return fail


def test_an_unexpected_error_is_one_line_with_a_hint(mlp, invoke, monkeypatch):
    error = RuntimeError("boom\x1b[31m\nsecond line")
    monkeypatch.setattr(compiler, "inspect_model", _fail_with(error))
    done = invoke("inspect", mlp)
    assert done.exit_code == 2
    assert done.stderr == (
        "tbn-inspect: error: RuntimeError: boom?[31m; see where with --verbose\n"
    )


def test_verbose_shows_the_trace_above_the_line(mlp, invoke, monkeypatch):
    error = RuntimeError("boom\x1b[31m\nsecond line")
    monkeypatch.setattr(compiler, "inspect_model", _fail_with(error))
    done = invoke("inspect", mlp, "--verbose")
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any("in inspect_tool" in line for line in lines)
    assert lines[-1].startswith("tbn-inspect: error: RuntimeError: boom")
    assert "\x1b" not in done.stderr


def test_an_error_without_text(mlp, invoke, monkeypatch):
    monkeypatch.setattr(compiler, "inspect_model", _fail_with(MemoryError()))
    done = invoke("inspect", mlp)
    assert done.stderr == "tbn-inspect: error: MemoryError: ; see where with --verbose\n"


def test_interrupt_is_status_130_without_a_word(mlp, invoke, monkeypatch):
    monkeypatch.setattr(compiler, "inspect_model", _fail_with(KeyboardInterrupt()))
    done = invoke("inspect", mlp)
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_left_is_no_error(mlp, options):
    code = "from tbn_compile.command_line.inspect import main; main()"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(mlp), *options],
            check=False, cwd=mlp.parent, stdout=writer, stderr=subprocess.PIPE, timeout=60,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (common.CLOSED_PIPE, b"")


@pytest.mark.parametrize("tool", ["compile", "inspect", "validate", "benchmark"])
def test_help_and_version(invoke, tool):
    helped = invoke(tool, "--help")
    assert helped.exit_code == 0
    assert f"Usage: tbn-{tool}" in helped.stdout
    assert "Exit status: 0 " in helped.stdout
    version = invoke(tool, "--version")
    assert version.exit_code == 0
    assert version.stdout.startswith(f"tbn-{tool} ")


@pytest.mark.parametrize("tool", ["compile", "inspect", "validate", "benchmark"])
def test_hostile_arguments_stay_on_their_line(run_tool, tool):
    hostile = "\x1b[31m\n[bold]" + "x" * 200
    for arguments in ((hostile, hostile), (f"--{hostile}",), ("--input-dim", hostile, "a", "b")):
        done = run_tool(tool, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"tbn-{tool}: error: ")
        assert done.stderr.count("\n") == 1
        assert "\x1b" not in done.stderr


def test_onnx_runtime_is_told_to_send_nothing(invoke, monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "as the user says")
    invoke("inspect", "--version")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "as the user says"
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    invoke("inspect", "--version")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_drawn_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with common.progress_bar() as progress:
        progress("lower", 1, 2)
    assert "lower" in sys.stderr.getvalue()


def test_progress_is_not_drawn_elsewhere(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with common.progress_bar() as progress:
        assert progress is None
    assert sys.stderr.getvalue() == ""
