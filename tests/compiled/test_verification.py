"""The check after compiling: which runs it makes, and what it finds."""

import onnx
import onnx.parser
import pytest

from tbn_compile import ModelError
from tbn_compile.sessions import Session, check_model
from tbn_compile.targets.compiled import verification
from tbn_compile.targets.compiled.verification import verify_artifact


class Compiled:
    """In place of an artifact: ONNX Runtime, wrong from `worst` rows on."""

    def __init__(self, source, worst=10**9):
        self.session, self.worst, self.seen = Session(check_model(source)), worst, []

    def run(self, inputs):
        rows = len(next(iter(inputs.values())))
        self.seen.append(rows)
        outputs = self.session.run(inputs)
        return {name: value + (rows >= self.worst) for name, value in outputs.items()}


def save(folder, body):
    text = f'<ir_version: 9, opset_import: ["" : 18]> {body}'
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    return folder / "model.onnx"


def verify(monkeypatch, source, compiled, dims):
    monkeypatch.setattr(verification, "load", lambda _: compiled)
    return verify_artifact(source, source, dims)


@pytest.mark.parametrize(("dims", "rows"), [({}, [1, 17]), ({"n": 5}, [5])])
def test_few_and_many_rows_are_run(tmp_path, monkeypatch, dims, rows):
    source = save(tmp_path, "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    compiled = Compiled(source)
    assert verify(monkeypatch, source, compiled, dims)
    assert compiled.seen == rows


def test_what_is_wrong_for_many_rows_alone_is_found(tmp_path, monkeypatch):
    source = save(tmp_path, "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="output 'y' differs"):
        verify(monkeypatch, source, Compiled(source, worst=17), {})


def test_an_extent_that_the_model_does_not_take_is_left_out(tmp_path, monkeypatch):
    source = save(
        tmp_path,
        "g (float[n, 4] x) => (float[1, 4] y) <int64[2] k = {1, 4}> { y = Reshape(x, k) }",
    )
    compiled = Compiled(source)
    assert verify(monkeypatch, source, compiled, {})
    assert compiled.seen == [1]
