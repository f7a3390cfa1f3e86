"""Models through target llvm: what compiles, and how bad input is refused."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import tvm
from helpers.architectures import ARCHITECTURES, export_architecture
from helpers.graphs import GraphBuilder
from helpers.weights import tiled_array
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tbn_compile import CompileOptions, ModelError, UsageError, compile_model, load
from tbn_compile.targets.compiled.library import OrderShapeStores
from tbn_compile.targets.compiled.llvm_processors import find_processor, tvm_target
from tbn_compile.targets.compiled.processor import architecture, present_features
from tbn_compile.targets.compiled.validation import validate_library


def save(folder, body, opset=18):
    text = f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]> {body}'
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("batch", [1, 3])
def test_small_architectures(name, batch, tmp_path):
    model = export_architecture(name, tmp_path)
    compile_model(model, "llvm", tmp_path / "model.so")
    report = validate_library(model, tmp_path / "model.so", input_dims={"batch": batch})
    assert report.passed, report.outputs


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_element_types(dtype, tmp_path):
    graph = GraphBuilder()
    x = graph.input("x", ["n", 96], dtype)
    weight = graph.weight("w", tiled_array((96, 64), 96 * 16, 0.25, dtype=np.dtype(dtype)))
    graph.node("MatMul", [x, weight], "y")
    onnx.save(graph.model("y", dtype=dtype, rank=2), tmp_path / "model.onnx")
    compile_model(tmp_path / "model.onnx", "llvm", tmp_path / "model.so")
    report = validate_library(tmp_path / "model.onnx", tmp_path / "model.so", input_dims={"n": 5})
    assert report.passed, report.outputs


def test_several_inputs_and_outputs(tmp_path):
    model = save(
        tmp_path,
        "g (float[n, 4] a, float[n, 4] b, int64[n] k) => (float[n, 4] s, int64[n] t)"
        "{ s = Add(a, b) t = Add(k, k) }",
    )
    compile_model(model, "llvm", tmp_path / "model.so")
    a, k = np.ones((2, 4), np.float32), np.arange(2)
    compiled = load(tmp_path / "model.so")
    total, twice = compiled(k=k, b=a, a=a)
    np.testing.assert_array_equal(total, a + a)
    np.testing.assert_array_equal(twice, k + k)
    with pytest.raises(UsageError, match=r"'b' must be float32 \(n, 4\), not \(3, 4\) with n=2"):
        compiled(a, np.ones((3, 4), np.float32), k)


def test_a_pinned_dimension_is_static(tmp_path):
    model = save(tmp_path, "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    compile_model(model, "llvm", tmp_path / "model.so", CompileOptions(input_dims={"n": 2}))
    compiled = load(tmp_path / "model.so")
    assert compiled.manifest.inputs[0].shape == (2, 4)
    with pytest.raises(UsageError, match=r"\(2, 4\), not \(3, 4\)"):
        compiled(np.ones((3, 4), np.float32))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            "g (double[4] x) => (double[4] y) { y = Relu(x) }",
            "input 'x': element type float64 cannot be compiled; use one of .*float16",
        ),
        (
            "g (float[4] x) => (float[4] y) { c = Cast <to = 11> (x) y = Cast <to = 1> (c) }",
            "element type float64",
        ),
        (
            "g (float[4] x) => (float[4] y) { y = com.microsoft.FastGelu(x) }",
            "operator com.microsoft::FastGelu is not supported",
        ),
        ("g () => (float[1] y) { y = Constant <value_floats = [1.0]> () }", "no inputs"),
    ],
)
def test_what_cannot_be_compiled_is_refused(tmp_path, body, problem):
    with pytest.raises(ModelError, match=problem):
        compile_model(save(tmp_path, body), "llvm", tmp_path / "model.so")
    assert not (tmp_path / "model.so").exists()


def test_another_meaning_of_the_graph_is_refused(tmp_path, monkeypatch):
    model = save(tmp_path, "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        "tbn_compile.sessions.Session.run",
        lambda session, feeds: {"y": run(session._session, None, feeds)[0] + 1},
    )
    with pytest.raises(ModelError, match="otherwise than ONNX Runtime: output 'y'"):
        compile_model(model, "llvm", tmp_path / "model.so")
    assert list(tmp_path.iterdir()) == [model]


def test_no_compiler_is_one_line(tmp_path, monkeypatch):
    model = save(tmp_path, "g (float[4] x) => (float[4] y) { y = Relu(x) }")
    monkeypatch.setattr("tvm.support.cc.get_cc", lambda: None)
    with pytest.raises(UsageError, match=r"install g\+\+ or clang\+\+"):
        compile_model(model, "llvm", tmp_path / "model.so")


def test_an_unknown_processor_lists_the_known():
    with pytest.raises(UsageError, match="unknown processor 'z80'; known: native, .*x86-64-v3"):
        find_processor("z80")


@pytest.mark.skipif(architecture() != "x86_64", reason="names of x86 processors")
def test_a_processor_without_64_bits_is_refused():
    with pytest.raises(UsageError, match="'pentium3' has no 64-bit mode"):
        find_processor("pentium3")
    with pytest.raises(UsageError, match="unknown processor 'z80'") as refusal:
        find_processor("z80")
    assert "pentium3" not in str(refusal.value)


@pytest.mark.skipif(architecture() != "x86_64", reason="names of x86 processors")
def test_code_for_a_named_processor(tmp_path):
    model = save(tmp_path, "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    report = compile_model(model, "llvm", tmp_path / "model.so", CompileOptions(cpu="x86-64-v2"))
    assert report.details["verified"]
    assert load(tmp_path / "model.so").manifest.processor.name == "x86-64-v2"
    with pytest.raises(UsageError, match="unknown processor 'z80'"):
        compile_model(model, "llvm", tmp_path / "other.so", CompileOptions(cpu="z80"))
    assert not (tmp_path / "other.so").exists()


@pytest.mark.skipif(architecture() != "x86_64", reason="names of x86 processors")
def test_code_that_this_machine_cannot_run_is_not_run(tmp_path, monkeypatch):
    model = save(tmp_path, "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    few = present_features() - {"avx2", "fma"}
    monkeypatch.setattr(
        "tbn_compile.targets.compiled.llvm_processors.present_features", lambda: few
    )
    monkeypatch.setattr("tbn_compile.targets.compiled.loader.present_features", lambda: few)
    report = compile_model(model, "llvm", tmp_path / "model.so", CompileOptions(cpu="x86-64-v3"))
    assert not report.details["verified"]
    assert any(
        "Not run here, because this machine lacks avx2, fma" in line
        for line in report.details_lines
    )
    with pytest.raises(ModelError, match="avx2"):
        load(tmp_path / "model.so")


def test_stores_of_symbolic_extents_are_sorted():
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("shape_func")
        extents = T.arg("extents", T.buffer((4,), "int64"))
        for place in (3, 1, 2):
            T.buffer_store(extents, extents[0] * place, [place])
    module = tvm.IRModule({"shape_func": builder.get(), "other": builder.get()})
    text = OrderShapeStores()(module)["shape_func"].script()
    stores = [line.partition("=")[0].strip() for line in text.splitlines() if " = " in line]
    assert stores == [f"extents[{place}]" for place in (1, 2, 3)]


def test_equal_artifacts(tmp_path):
    model = save(
        tmp_path,
        "g (float[n, 4, m] x) => (float[r, s] y)"
        "{ d = Concat <axis = 0> (x, x) f = Flatten <axis = 1> (d) y = Concat <axis = 1> (f, f) }",
    )
    contents = []
    for _ in range(2):
        compile_model(model, "llvm", tmp_path / "model.so")
        contents.append((tmp_path / "model.so").read_bytes())
    assert contents[0] == contents[1]


def test_features_of_a_named_processor():
    features = find_processor("haswell").features
    assert {"avx2", "fma"} <= set(features)
    assert "avx512f" not in features


def test_a_hidden_feature_is_switched_off(monkeypatch):
    processor = find_processor("skylake-avx512").model_copy(update={"features": ("avx2",)})
    assert "-avx512f" in tvm_target(processor).attrs["mattr"]


def test_batch_norm_in_float16_that_nothing_takes_in(tmp_path):
    model = save(
        tmp_path,
        "g (float16[2, 3, 4, 4] x) => (float16[2, 3, 4, 4] y)"
        "<float16[3] s = {1, 2, 3}, float16[3] b = {0, 1, 0}, float16[3] m = {0, 0, 1},"
        " float16[3] v = {1, 1, 2}>"
        "{ r = Relu(x) y = BatchNormalization(r, s, b, m, v) }",
    )
    compile_model(model, "llvm", tmp_path / "model.so")
    assert validate_library(model, tmp_path / "model.so").passed


def test_four_rows_that_repeat_in_wide_vectors(tmp_path):
    """LLVM 22 vectorises `output % 4` of the portable kernel wrongly in this layer."""
    model = Path(__file__).with_name("four_rows.onnx")
    compile_model(model, "llvm", tmp_path / "model.so")
    assert validate_library(model, tmp_path / "model.so").passed


@pytest.mark.parametrize("target", ["ort", "llvm"])
def test_a_layer_that_nothing_reads_is_dropped(target, tmp_path):
    graph = GraphBuilder()
    x = graph.input("x", [2, 16])
    weight = graph.weight("w", tiled_array((16, 16), 64, 0.5))
    graph.node("MatMul", [x, weight], "unread")
    onnx.save(graph.model(graph.node("MatMul", [x, weight], "y"), rank=2), tmp_path / "model.onnx")
    report = compile_model(tmp_path / "model.onnx", target, tmp_path / "artifact")
    assert [layer.name for layer in report.lowered] == [report.layers[0].name]
