import csv
import json
import os
import subprocess
import sys

import pytest

HOSTILE = "\x1b[31mred\r\nnext [bold]line[/bold] :smile: \u202e" + "n" * 10_000


def test_tells_what_would_be_lowered_and_writes_nothing(mlp, run_tool, tmp_path):
    done = run_tool("inspect", mlp)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 of 3 layers lowered" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(("columns", "width"), [("40", 80), ("80", 80), ("140", 140)])
def test_reasons_are_never_cut_off(mlp, run_tool, columns, width):
    done = run_tool("inspect", mlp, COLUMNS=columns)
    reason = json.loads(run_tool("inspect", mlp, "--json").stdout)["layers"][2]["reason"]
    table = done.stdout.splitlines()
    start = next(i for i, line in enumerate(table) if "fc3" in line)
    outcomes = [line[_column(table, "Outcome") :].strip() for line in table[start:]]
    assert " ".join(outcomes[: outcomes.index("")]) == f"left alone: {reason}"
    assert max(len(line) for line in table) <= width


def _column(table, heading):
    return next(line.index(heading) for line in table if heading in line)


def test_json(mlp, invoke):
    report = json.loads(invoke("inspect", mlp, "--json").stdout)
    assert report["schema_version"] == 1
    assert report["artifact"] is None
    assert report["layers"][0].keys() == {
        "name", "operator", "weight", "shape", "dtype", "status", "reason", "tiles", "tile_length",
        "offset", "layout", "scaling", "plan", "original_bytes", "stored_bytes",
        "dense_multiply_adds", "multiply_adds", "bits_per_weight",
    }  # fmt: skip
    assert report["totals"]["original_bytes"] == 4 * (16 * 32 + 16 * 16 + 8 * 16)


def test_csv(mlp, invoke, tmp_path):
    assert invoke("inspect", mlp, "--csv", tmp_path / "layers.csv").exit_code == 0
    with (tmp_path / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["fc1", "fc2", "fc3"]
    assert [row["shape"] for row in rows] == ["16x32", "16x16", "8x16"]
    assert rows[0]["tiles"] == "4.0"
    assert float(rows[0]["bits_per_weight"]) == pytest.approx(8 * (16 + 4) / 512)
    assert rows[2]["reason"].startswith("magnitudes differ")


def test_csv_never_replaces_the_model(mlp, invoke):
    before = mlp.read_bytes()
    done = invoke("inspect", mlp, "--csv", mlp)
    assert done.exit_code == 2
    assert mlp.read_bytes() == before


def test_csv_that_cannot_be_written(mlp, invoke, tmp_path):
    done = invoke("inspect", mlp, "--csv", tmp_path / "missing" / "layers.csv")
    assert done.exit_code == 2
    assert "cannot write" in done.stderr


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@x"])
def test_csv_cells_are_no_formulas(save_mlp, invoke, tmp_path, name):
    assert invoke("inspect", save_mlp(first=name), "--csv", tmp_path / "a.csv").exit_code == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["name"] == f"'{name}"


def test_hostile_names_stay_on_their_line(save_mlp, run_tool, tmp_path):
    model = save_mlp(first=HOSTILE)
    done = run_tool("inspect", model, "--csv", "layers.csv")
    assert (done.returncode, done.stderr) == (0, "")
    for text in (done.stdout, (tmp_path / "layers.csv").read_text()):
        assert all(c.isprintable() for c in text.replace("\n", ""))
        assert "?[31mred??next [bold]line[/bold]" in text
        assert ":smile: ?" in text
    assert len(done.stdout) < 4000
    as_json = run_tool("inspect", model, "--json")
    assert json.loads(as_json.stdout)["layers"][0]["name"] == HOSTILE
    assert as_json.stdout.isascii()
    assert "\x1b" not in as_json.stdout


def test_colour_only_where_it_is_wanted(save_mlp, run_tool):
    model = save_mlp(first=HOSTILE)
    wanted = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "140"}
    for environment, yellow in ((wanted, True), ({**wanted, "NO_COLOR": "1"}, False)):
        done = run_tool("inspect", model, **environment)
        assert ("\x1b[33m" in done.stdout) == yellow
        assert "\x1b[31m" not in done.stdout
        assert "[bold]line[/bold]" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_arrows_still_gets_a_table(mlp, run_tool, encoding):
    done = run_tool("inspect", mlp, encoding=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fc1 (Gemm)" in done.stdout


def test_a_model_without_weights(save_text, invoke):
    done = invoke("inspect", save_text("a.onnx", "g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    assert done.exit_code == 0
    assert "a.onnx: no Gemm, MatMul or Conv" in done.stdout


@pytest.mark.parametrize(
    ("tool", "arguments", "unneeded"),
    [
        ("inspect", ["--help"], ["tvm", "onnx", "numpy", "onnxruntime"]),
        ("inspect", ["model.onnx"], ["tvm", "onnxruntime"]),
        ("compile", ["model.onnx"], ["tvm", "onnxruntime"]),
    ],
)
def test_nothing_slow_is_imported(mlp, tmp_path, tool, arguments, unneeded):
    for name in ("tvm", "onnxruntime"):
        (tmp_path / f"{name}.py").touch()
    code = (
        f"import sys; from tbn_compile.command_line.{tool} import app\n"
        f"try: app({arguments!r})\n"
        f"except SystemExit as end: assert not end.code\n"
        f"found = set({unneeded!r}) & set(sys.modules)\n"
        f"assert not found, found"
    )
    search = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        timeout=60,
    )
