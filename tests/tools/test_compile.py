import json

import numpy as np
import onnx
import onnxruntime
import pytest

import tbn_compile
from tbn_compile import compiler, library
from tbn_compile.errors import UsageError


def test_writes_an_artifact_beside_the_model_and_says_what_became_of_each_layer(mlp, run_tool):
    done = run_tool("compile", mlp.name)
    assert (done.returncode, done.stderr) == (0, "")
    words = " ".join(done.stdout.split())
    assert "fc1 (Gemm) 16×32 float32 4 " in words
    assert "reuse of rows, a scale per layer" in words
    assert "fc3 (Gemm) 8×16 float32 32 512 B 128 left alone: magnitudes differ" in words
    assert "2 of 3 layers lowered: weights " in words
    assert f"model.onnx {_size(mlp)} → model.tbn.onnx" in words
    assert "Time: load " in words
    assert "\x1b" not in done.stdout
    operators = [node.op_type for node in onnx.load(mlp.with_name("model.tbn.onnx")).graph.node]
    assert operators == ["TiledBinaryGemm", "TiledBinaryGemm", "Gemm"]


def _size(path):
    return f"{path.stat().st_size / 1000:.3g} kB"


def test_the_artifact_computes_what_the_model_does(mlp, invoke, tmp_path):
    assert invoke("compile", mlp, "-o", tmp_path / "out.onnx").exit_code == 0
    x = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    expected, computed = (
        onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
        for path in (mlp, tmp_path / "out.onnx")
    )
    np.testing.assert_allclose(computed, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_json_is_all_there_is_on_stdout(mlp, run_tool):
    done = run_tool("compile", mlp, "--json", "--validate")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report.keys() == {
        "schema_version", "model", "layers", "original_file_bytes", "target", "artifact",
        "artifact_bytes", "phases", "details", "totals", "validation",
    }  # fmt: skip
    assert report["schema_version"] == 1
    assert report["artifact_bytes"] == mlp.with_name(report["artifact"]).stat().st_size
    assert list(report["phases"]) == ["load", "normalise", "lower", "optimise", "package"]
    assert [layer["status"] for layer in report["layers"]] == ["lowered", "lowered", "left alone"]
    assert report["validation"]["passed"] is True


def test_report_file_holds_the_json(mlp, invoke, tmp_path):
    done = invoke("compile", mlp, "--json", "--report", tmp_path / "report.json")
    assert done.exit_code == 0
    assert (tmp_path / "report.json").read_text() == done.stdout


@pytest.mark.parametrize("output", ["model.onnx.data", "model.onnx"])
def test_an_artifact_never_replaces_external_data(save_mlp, invoke, tmp_path, output):
    model = save_mlp(external=True)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = invoke("compile", model, "-o", tmp_path / output)
    assert done.exit_code == 2
    assert "would replace the model" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_report_never_replaces_the_model_or_the_artifact(mlp, invoke, tmp_path):
    original = mlp.read_bytes()
    for report in (mlp, tmp_path / "out.onnx", tmp_path / "model.tbn.onnx"):
        output = () if report.name == "model.tbn.onnx" else ("-o", tmp_path / "out.onnx")
        done = invoke("compile", mlp, *output, "--report", report)
        assert done.exit_code == 2
        assert "would replace" in done.stderr
    assert mlp.read_bytes() == original
    onnx.load(tmp_path / "model.tbn.onnx")


def test_dump_phases_keeps_the_model_after_each_phase(mlp, invoke, tmp_path):
    assert invoke("compile", mlp, "--dump-phases", tmp_path / "dump").exit_code == 0
    models = sorted(path.name for path in (tmp_path / "dump").glob("*.onnx"))
    assert models == ["1-load.onnx", "2-normalise.onnx", "3-lower.onnx", "4-optimise.onnx"]
    lowered = onnx.load(tmp_path / "dump" / "3-lower.onnx")
    assert [n.op_type for n in lowered.graph.node].count("TiledBinaryGemm") == 2


def test_dump_phases_into_a_file_is_refused_in_one_line(mlp, invoke):
    done = invoke("compile", mlp, "--dump-phases", mlp)
    assert done.exit_code == 2
    assert done.stderr.startswith("tbn-compile: error: File exists")
    assert done.stderr.count("\n") == 1


def test_input_dim_pins_a_symbolic_dimension(mlp, invoke, tmp_path):
    done = invoke("compile", mlp, "--input-dim", "batch=4", "--json")
    assert done.exit_code == 0
    artifact = onnx.load(mlp.with_name("model.tbn.onnx"))
    assert artifact.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    assert json.loads(done.stdout)["layers"][0]["dense_multiply_adds"] == 4 * 16 * 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["batch"], "'batch' is not NAME=VALUE"),
        (["batch="], "'batch=' is not NAME=VALUE"),
        (["=4"], "'=4' is not NAME=VALUE"),
        (["batch=0"], "a value of 1 to 2147483647"),
        (["batch=-1"], "a value of 1 to 2147483647"),
        (["batch=2147483648"], "a value of 1 to 2147483647"),
        (["batch=" + "9" * 5000], "a value of 1 to 2147483647"),
        (["batch=²"], "a value of 1 to 2147483647"),
        (["batch=4", "batch=5"], "gives 'batch' twice"),
        (["rows=4"], "no input dimension 'rows'; the model has: batch"),
    ],
)
def test_bad_input_dim(mlp, invoke, options, message):
    done = invoke("compile", mlp, *(part for o in options for part in ("--input-dim", o)))
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not mlp.with_name("model.tbn.onnx").exists()


def test_list_targets(invoke):
    done = invoke("compile", "--list-targets")
    assert done.exit_code == 0
    assert "ort  sub-bit ONNX file" in done.stdout
    listed = json.loads(invoke("compile", "--list-targets", "--json").stdout)
    assert listed.keys() == {"schema_version", "targets"}
    assert sorted(listed["targets"]) == tbn_compile.target_names()


def test_version(run_tool):
    done = run_tool("compile", "--version")
    assert (done.returncode, done.stdout) == (0, f"tbn-compile {tbn_compile.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the MODEL to compile"),
        (["--no-such-option"], "--no-such-option"),
        (["model.onnx", "second.onnx"], "second.onnx"),
        (["model.onnx", "--target", "toaster"], "unknown target 'toaster'; installed targets: "),
        (["missing.onnx"], "missing.onnx: no such file; check the path"),
        (["model.onnx", "-o", "missing/out.onnx"], "cannot write missing/out.onnx: No such file"),
        (
            ["model.onnx", "-o", "model.onnx"],
            "model.onnx would replace the model; choose another output",
        ),
        (["model.onnx", "-o", "."], ". is a folder; choose another output file"),
        (["model.onnx", "-o", "n" * 10_000], "File name too long"),
        (["model.onnx", "--report", "missing/report.json"], "cannot write missing/report.json"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(mlp, run_tool, arguments, message):
    done = run_tool("compile", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tbn-compile: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"no model", None], ids=repr)
def test_a_failed_run_leaves_the_earlier_artifact_and_nothing_else(
    mlp, run_tool, tmp_path, content
):
    artifact = tmp_path / "model.tbn.onnx"
    artifact.write_bytes(b"earlier")
    mlp.write_bytes(mlp.read_bytes()[:-200] if content is None else content)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = run_tool("compile", mlp, "--report", "report.json", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tbn-compile: error: model.onnx: ")
    assert done.stderr.count("\n") == 1
    assert artifact.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_same_bytes_whatever_the_hash_seed(mlp, run_tool, tmp_path):
    for seed in ("1", "2"):
        done = run_tool("compile", mlp, "-o", f"{seed}.onnx", PYTHONHASHSEED=seed)
        assert done.returncode == 0
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


def test_validate_shows_both_runtimes(mlp, invoke):
    done = invoke("compile", mlp, "--validate")
    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.endswith(" ok ")] == [
        ["y", "without"],
        ["y", "with"],
    ]
    assert "Validation passed on 3 random input sets" in done.stdout


def test_failed_validation_keeps_the_artifact_and_says_so(mlp, invoke, monkeypatch, flip_bit):
    def miscompile(model, target, output, options):
        report = compile_model(model, target, output, options)
        flip_bit(model.with_name(report.artifact), "fc2")
        return report

    compile_model = compiler.compile_model
    monkeypatch.setattr(compiler, "compile_model", miscompile)
    done = invoke("compile", mlp, "--validate")
    artifact = mlp.with_name("model.tbn.onnx")
    assert done.exit_code == 1
    assert "FAILED" in done.stdout
    assert "First tensor that differs: c" in done.stdout
    assert "validation failed; " in done.stderr
    assert "model.tbn.onnx was written all the same" in done.stderr
    assert artifact.exists()
    failed = json.loads(invoke("compile", mlp, "--validate", "--json").stdout)
    assert failed["validation"]["passed"] is False
    assert failed["validation"]["first_divergence"] == "c"


def test_validate_without_the_library_fails_before_anything_is_written(mlp, invoke, monkeypatch):
    def missing():
        raise UsageError("libtbn_ort.so is not installed")

    monkeypatch.setattr(library, "get_library_path", missing)
    done = invoke("compile", mlp, "--validate")
    assert done.exit_code == 2
    assert done.stderr == "tbn-compile: error: libtbn_ort.so is not installed\n"
    assert not mlp.with_name("model.tbn.onnx").exists()


@pytest.mark.parametrize(("target", "suffix"), [("llvm", ".so"), ("c", ".tar")])
def test_an_output_that_could_not_be_validated_is_refused_at_once(mlp, invoke, target, suffix):
    done = invoke("compile", mlp, "--target", target, "-o", mlp.with_name("x.tbn"), "--validate")
    assert done.exit_code == 2
    assert f"by {suffix}; name the output x{suffix}" in done.stderr
    assert not mlp.with_name("x.tbn").exists()


def test_a_model_that_cannot_be_validated_is_still_compiled_and_the_error_says_so(
    save_text, invoke
):
    model = save_text("odd.onnx", "g (string[2] x) => (string[2] y) { y = Identity(x) }")
    done = invoke("compile", model, "--validate")
    assert done.exit_code == 2
    assert "input 'x' is STRING" in done.stderr
    assert "odd.tbn.onnx was written but not validated" in done.stderr
    assert model.with_name("odd.tbn.onnx").exists()


def test_external_data(save_mlp, invoke):
    model = save_mlp("big.onnx", external=True)
    done = invoke("compile", model, "--json", "--validate")
    assert done.exit_code == 0
    size = model.stat().st_size + model.with_name("big.onnx.data").stat().st_size
    assert json.loads(done.stdout)["original_file_bytes"] == size
