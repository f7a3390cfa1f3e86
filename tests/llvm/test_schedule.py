"""What is no tiled layer: matrix products of every form, and indices that point nowhere."""

import numpy as np
import onnx
import onnx.parser
import pytest
import tvm
from tvm import te

from tbn_compile import compile_model, load
from tbn_compile.targets.compiled.validation import validate_library
from tbn_compile.targets.llvm.schedule import AddUpRows


@pytest.fixture
def compile_text(tmp_path):
    """Compile the text of a graph; gives the model's file and the artifact's."""

    def write(body):
        text = f'<ir_version: 9, opset_import: ["" : 18]> {body}'
        onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
        compile_model(tmp_path / "model.onnx", "llvm", tmp_path / "model.so")
        return tmp_path / "model.onnx", tmp_path / "model.so"

    return write


@pytest.mark.parametrize(
    "shapes",
    [
        ("n, 5, 7", "n, 7, 65", "n, 5, 65"),
        ("n, 1, 7", "n, 7, 1", "n, 1, 1"),
        ("n, 7", "7, 33", "n, 33"),
        ("7", "7, 33", "33"),
        ("2, 3, n, 8", "2, 3, 8, n", "2, 3, n, n"),
    ],
)
@pytest.mark.parametrize("extent", [1, 6])
def test_matrix_products(compile_text, shapes, extent):
    a, b, y = (f"float[{shape}]" for shape in shapes)
    text = "g ({a} a, {b} b) => ({y} y) {{ p = MatMul(a, b) y = Relu(p) }}"
    model, artifact = compile_text(text.format(a=a, b=b, y=y))
    dims = {"n": extent} if "n" in "".join(shapes) else {}
    report = validate_library(model, artifact, input_dims=dims)
    assert report.passed, report.outputs


def test_the_innermost_loop_runs_along_the_result():
    a, b = te.placeholder((4, 8), name="a"), te.placeholder((8, 32), name="b")
    k = te.reduce_axis((0, 8), name="k")
    product = te.compute((4, 32), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="product")
    module = AddUpRows()(tvm.IRModule({"main": te.create_prim_func([a, b, product])}))
    assert "T.grid(8, 32)" in module["main"].script()  # as TVM writes it, the sum is innermost


def test_indices_outside_of_a_table_stay_inside(compile_text):
    _, artifact = compile_text(
        "g (float[3, 4] t, int64[n] i) => (float[n, 4] y) { y = Gather <axis = 0> (t, i) }"
    )
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    result = load(artifact)(table, np.array([0, -1, 10**9]))
    np.testing.assert_array_equal(result[:2], table[[0, -1]])
    assert result[2] in table
