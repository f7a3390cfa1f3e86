"""The verdict: what fails, what passes, and what each figure means."""

import json

import numpy as np
import onnx
import pytest

from tbn_compile import ModelError, UsageError, compile_model, validate_model, validation


@pytest.fixture
def artifact(mlp, tmp_path):
    compile_model(mlp, output=tmp_path / "model.tbn.onnx")
    return tmp_path / "model.tbn.onnx"


@pytest.fixture
def compare(save_text):
    """Validate `y = ARTIFACT(x)` against `y = MODEL(x)`; gives the stock runtime's comparison."""

    def run(model, artifact, kind="float[4]", result=None, **options):
        text = "g ({kind} x) => ({result} y) {{ {body} }}"
        files = [
            save_text(file, text.format(kind=kind, result=result or kind, body=body))
            for file, body in (("model.onnx", model), ("artifact.onnx", artifact))
        ]
        report = validate_model(*files, **options)
        assert [output.runtime for output in report.outputs] == ["stock", "library"]
        return report.outputs[0]

    return run


def test_a_compiled_model_passes(mlp, artifact, invoke):
    done = invoke("validate", mlp, artifact)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Validation passed on 3 random input sets" in done.stdout


def test_json(mlp, artifact, invoke):
    report = json.loads(invoke("validate", mlp, artifact, "--json", "--seed", "7").stdout)
    assert report.keys() == {
        "schema_version", "passed", "model", "artifact", "outputs", "input_sets", "seed",
        "first_divergence", "search_problem",
    }  # fmt: skip
    assert (report["schema_version"], report["passed"], report["seed"]) == (1, True, 7)
    assert [(output["tensor"], output["runtime"]) for output in report["outputs"]] == [
        ("y", "stock"),
        ("y", "library"),
    ]
    assert report["outputs"][0].keys() == {
        "tensor", "runtime", "dtype", "tolerance", "max_absolute", "max_to_largest",
        "max_relative", "max_ulp", "cosine", "non_finite_mismatches", "mismatch", "passed",
    }  # fmt: skip


@pytest.mark.parametrize("bit", range(0, 128, 9))
def test_one_flipped_bit_fails(mlp, artifact, flip_bit, bit):
    flip_bit(artifact, "fc1", bit)
    report = validate_model(mlp, artifact)
    assert not any(output.passed for output in report.outputs)


def test_one_flipped_bit_fails_in_half_precision(save_text, tmp_path, flip_bit):
    rng = np.random.default_rng(0)
    weight = np.resize(rng.choice([-0.5, 0.5], 256 * 784 // 4), (256, 784)).astype(np.float16)
    model = save_text(
        "half.onnx",
        "g (float16[b, 784] x) => (float16[b, 256] y) { y = Gemm <transB = 1> (x, W) }",
    )
    proto = onnx.load(model)
    proto.graph.node[0].name = "layer"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
    onnx.save(proto, model)
    compile_model(model, output=tmp_path / "half.tbn.onnx")
    assert validate_model(model, tmp_path / "half.tbn.onnx").passed
    flip_bit(tmp_path / "half.tbn.onnx", "layer")
    assert not any(out.passed for out in validate_model(model, tmp_path / "half.tbn.onnx").outputs)


@pytest.mark.parametrize(("node", "tensor"), [("fc1", "b"), ("fc2", "c")])
def test_names_the_first_tensor_that_differs(mlp, artifact, flip_bit, node, tensor):
    flip_bit(artifact, node)
    assert validate_model(mlp, artifact).first_divergence == tensor


def test_shows_where_a_failed_artifact_differs(mlp, artifact, invoke, flip_bit):
    flip_bit(artifact, "fc2")
    done = invoke("validate", mlp, artifact)
    assert done.exit_code == 1
    assert "First tensor that differs: c\n" in done.stdout
    assert "Validation failed" in done.stdout
    assert done.stdout.count("FAILED") == 2


def test_names_the_first_tensor_that_differs_with_external_data(save_mlp, tmp_path, flip_bit):
    mlp = save_mlp("big.onnx", external=True)
    compile_model(mlp, output=tmp_path / "big.tbn.onnx")
    flip_bit(tmp_path / "big.tbn.onnx", "fc2")
    report = validate_model(mlp, tmp_path / "big.tbn.onnx")
    assert (report.first_divergence, report.search_problem) == ("c", None)


def test_a_search_that_fails_leaves_the_verdict(mlp, artifact, flip_bit, monkeypatch, invoke):
    def fail(*_):
        raise ModelError("no search today")

    flip_bit(artifact, "fc1")
    monkeypatch.setattr(validation, "_first_divergence", fail)
    done = invoke("validate", mlp, artifact)
    assert done.exit_code == 1
    assert "No search for the first tensor that differs: no search today" in done.stdout


def test_the_artifact_of_another_model_fails(mlp, save_mlp, tmp_path):
    compile_model(save_mlp("other.onnx", seed=1), output=tmp_path / "other.tbn.onnx")
    assert not validate_model(mlp, tmp_path / "other.tbn.onnx").passed


def test_another_interface_is_bad_input(mlp, save_text, invoke):
    other = save_text("other.onnx", "g (float[4] x) => (float[4] z) { z = Relu(x) }")
    done = invoke("validate", mlp, other)
    assert done.exit_code == 2
    assert "other.onnx was not compiled from model.onnx: its outputs are z, not y" in done.stderr


def test_tolerance_overrides_the_verdict(mlp, artifact, flip_bit, invoke):
    flip_bit(artifact, "fc2")
    assert invoke("validate", mlp, artifact, "--tolerance", "1e-6").exit_code == 1
    assert invoke("validate", mlp, artifact, "--tolerance", "10").exit_code == 0


@pytest.mark.parametrize("tolerance", ["-1", "nan", "much"])
def test_bad_tolerance(mlp, artifact, invoke, tolerance):
    done = invoke("validate", mlp, artifact, "--tolerance", tolerance)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_no_input_sets(mlp, artifact):
    with pytest.raises(UsageError, match="one input set or more"):
        validate_model(mlp, artifact, input_sets=0)


def test_given_inputs(mlp, artifact, invoke, tmp_path, flip_bit):
    np.savez(tmp_path / "x.npz", x=np.zeros((5, 32), np.float32))
    flip_bit(artifact, "fc1")
    done = invoke("validate", mlp, artifact, "--inputs", tmp_path / "x.npz")
    assert done.exit_code == 0, "zeros hide any weight"
    assert "Validation passed on given inputs" in done.stdout
    np.savez(tmp_path / "x.npz", x=np.ones((5, 32), np.float32))
    assert invoke("validate", mlp, artifact, "--inputs", tmp_path / "x.npz").exit_code == 1


def test_pinned_dimensions_of_the_artifact_are_used(mlp, invoke):
    assert invoke("compile", mlp, "--input-dim", "batch=4", "--validate").exit_code == 0
    assert invoke("validate", mlp, mlp.with_name("model.tbn.onnx")).exit_code == 0


def test_unknown_dimension(mlp, artifact, invoke):
    done = invoke("validate", mlp, artifact, "--input-dim", "rows=4")
    assert done.exit_code == 2
    assert "no input dimension 'rows'; the model has: batch" in done.stderr


def test_without_the_library(mlp, artifact, invoke, monkeypatch):
    def missing():
        raise UsageError("libtbn_ort.so is not installed")

    monkeypatch.setattr(validation, "get_library_path", missing)
    done = invoke("validate", mlp, artifact)
    assert done.exit_code == 2
    assert done.stderr == "tbn-validate: error: libtbn_ort.so is not installed\n"


def test_a_library_that_cannot_be_loaded(mlp, artifact, monkeypatch, tmp_path):
    (tmp_path / "libtbn_ort.so").write_bytes(b"no library")
    monkeypatch.setattr(validation, "get_library_path", lambda: str(tmp_path / "libtbn_ort.so"))
    with pytest.raises(UsageError, match=r"libtbn_ort\.so cannot be loaded"):
        validate_model(mlp, artifact)


@pytest.mark.parametrize("which", [0, 1])
def test_damaged_files(mlp, artifact, run_tool, which):
    damaged = (mlp, artifact)[which]
    damaged.write_bytes(damaged.read_bytes()[:100])
    done = run_tool("validate", mlp, artifact)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tbn-validate: error: {damaged.name}: ")
    assert done.stderr.count("\n") == 1


def test_a_model_that_onnx_runtime_cannot_load(save_text, run_tool):
    text = "g (bfloat16[2,2] x) => (bfloat16[2,2] y) { y = Gemm(x, x) }"
    model = save_text("coarse.onnx", text)
    done = run_tool("validate", model, model)
    assert (done.returncode, done.stdout) == (2, "")
    assert "coarse.onnx" in done.stderr or "BFLOAT16" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_model_that_onnx_runtime_cannot_run(save_text, run_tool):
    text = "g (float[n, 3] x, float[m, 3] w) => (float[n, 3] y) { y = Add(x, w) }"
    model = save_text("odd.onnx", text)
    done = run_tool("validate", model, model, "--input-dim", "n=2", "--input-dim", "m=5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tbn-validate: error: odd.onnx: ONNX Runtime cannot run it: ")
    assert done.stderr.count("\n") == 1


def test_hostile_tensor_names(invoke, save_text):
    model, artifact = (
        save_text(file, f"g (float[4] x) => (float[4] y) {{ y = {body} }}")
        for file, body in (("model.onnx", "Relu(x)"), ("artifact.onnx", "Neg(x)"))
    )
    for path in (model, artifact):
        proto = onnx.load(path)
        name = "\x1b[31m\n[bold]" + "y" * 10_000
        proto.graph.output[0].name = proto.graph.node[0].output[0] = name
        onnx.save(proto, path)
    done = invoke("validate", model, artifact)
    assert done.exit_code == 1
    assert "\x1b" not in done.stdout
    assert "First tensor that differs: ?[31m?[bold]yyy" in done.stdout
    assert len(done.stdout) < 4000


def test_equal_outputs(compare):
    result = compare("y = Relu(x)", "y = Relu(x)")
    assert result.passed
    assert (result.max_absolute, result.max_to_largest, result.max_relative) == (0, 0, 0)
    assert (result.max_ulp, result.cosine, result.non_finite_mismatches) == (0, 1, 0)


def test_errors_are_measured(compare, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([1, -2, 0, 4], np.float32))
    step = "one = Constant <value = float {0.5}> () y = Add(x, one)"
    result = compare("y = Identity(x)", step, inputs=tmp_path / "x.npz")
    assert not result.passed
    assert (result.max_absolute, result.max_to_largest) == (0.5, 0.125)
    assert result.max_relative == 0.5
    exact, computed = np.array([1, -2, 0, 4]), np.array([1.5, -1.5, 0.5, 4.5])
    lengths = np.linalg.norm(exact) * np.linalg.norm(computed)
    assert result.cosine == pytest.approx(exact @ computed / lengths)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float", np.float32), ("float16", np.float16), ("double", np.float64)]
)
def test_ulp_counts_floating_point_numbers_across_zero(compare, tmp_path, kind, dtype):
    tiny = np.nextafter(dtype(0), dtype(1))
    np.savez(tmp_path / "x.npz", x=np.array([tiny, 0, -tiny, tiny], dtype))
    result = compare("y = Identity(x)", "y = Neg(x)", f"{kind}[4]", inputs=tmp_path / "x.npz")
    assert result.max_ulp == 2
    np.savez(tmp_path / "x.npz", x=np.full(4, 1, dtype))
    one = "one = Constant <value_float = 1.0> () unit = CastLike(one, x)"
    step = "two = Add(unit, unit) y = Mul(x, two)"
    result = compare("y = Identity(x)", f"{one} {step}", f"{kind}[4]", inputs=tmp_path / "x.npz")
    assert result.max_ulp == 2 ** np.finfo(dtype).nmant


def test_nan_and_infinity_must_match(compare, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([np.nan, np.inf, -np.inf, 1], np.float32))
    inputs = {"inputs": tmp_path / "x.npz"}
    assert compare("y = Identity(x)", "y = Add(x, x)", **inputs).non_finite_mismatches == 0
    result = compare("y = Identity(x)", "y = Abs(x)", **inputs)
    assert result.non_finite_mismatches == 1
    assert result.max_absolute == 0
    assert not result.passed


def test_non_finite_numbers_reach_json_as_null(save_text, invoke, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros(4, np.float32))
    one = "one = Constant <value = float {1.0}> ()"
    files = [
        save_text(f"{body}.onnx", f"g (float[4] x) => (float[4] y) {{ {one} y = {body}(x, one) }}")
        for body in ("Mul", "Add")
    ]
    done = invoke("validate", *files, "--json", "--inputs", tmp_path / "x.npz")
    assert done.exit_code == 1
    output = json.loads(done.stdout)["outputs"][0]
    assert (output["max_absolute"], output["max_to_largest"]) == (1, None)


def test_another_shape_fails(compare):
    result = compare("y = Identity(x)", "y = Concat <axis = 0> (x, x)", result="float[n]")
    assert not result.passed
    assert result.mismatch == "float32[8], not float32[4]"


def test_integers_must_be_equal(compare):
    one = "one = Constant <value = int64 {1}> ()"
    assert compare("y = Identity(x)", "y = Identity(x)", "int64[4]").passed
    result = compare("y = Identity(x)", f"{one} y = Add(x, one)", "int64[4]")
    assert not result.passed
    assert (result.tolerance, result.max_absolute, result.max_ulp) == (0, 1, None)


def test_strings_and_truth_values_are_compared(compare):
    assert not compare("y = Identity(x)", "y = Not(x)", "bool[4]").passed
    cast = "y = Cast <to = 8> (x)"
    twice = "z = Add(x, x) y = Cast <to = 8> (z)"
    assert compare(cast, cast, result="string[4]").passed
    assert not compare(cast, twice, result="string[4]").passed


def test_empty_outputs_pass(compare):
    assert compare("y = Identity(x)", "y = Neg(x)", "float[0]").passed


def test_half_precision_inside_widens_the_tolerance(save_mlp, tmp_path, invoke, save_text):
    rng = np.random.default_rng(0)
    weight = np.resize(rng.choice([-1.0, 1.0], 128), (16, 32)).astype(np.float16)
    model = save_text(
        "half.onnx",
        "g (float[4, 32] x) => (float[4, 16] y) "
        "{ h = Cast <to = 10> (x) z = Gemm <transB = 1> (h, W) y = Cast <to = 1> (z) }",
    )
    proto = onnx.load(model)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
    onnx.save(proto, model)
    compile_model(model, output=tmp_path / "half.tbn.onnx")
    report = validate_model(model, tmp_path / "half.tbn.onnx")
    assert report.passed
    assert {(output.dtype, output.tolerance) for output in report.outputs} == {("float32", 4e-3)}
