"""The file: what it holds, and that nothing but a whole one is opened."""

import hashlib
import json
import subprocess

import pytest

from tbn_compile import ModelError, compile_model, load
from tbn_compile.targets.compiled.artifact import pack_artifact, read_artifact
from tbn_compile.targets.compiled.manifest import Manifest, Processor, TensorSpec


@pytest.fixture
def damaged(example, tmp_path):
    """Write a changed copy of the artifact."""

    def write(change):
        path = tmp_path / "model.so"
        path.write_bytes(change(example.artifact.read_bytes()))
        return path

    return write


@pytest.fixture
def never_opened(monkeypatch):
    """Fail if TVM opens any library."""

    def refuse(*_):
        pytest.fail("a library was opened")

    monkeypatch.setattr("tvm.runtime.load_module", refuse)


def test_the_manifest_tells_what_goes_in_and_out(example):
    manifest, content = read_artifact(example.artifact)
    assert manifest.inputs == (TensorSpec(name="input", dtype="float32", shape=("batch", 784)),)
    assert manifest.outputs == (TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),)
    assert (manifest.schema_version, manifest.target, manifest.device) == (1, "llvm", "cpu")
    assert manifest.tools.keys() == {"tbn-compile", "tvm", "llvm"}
    size = content.index(b'{\n  "schema_version"')
    assert hashlib.sha256(content[:size]).hexdigest() == manifest.library_sha256


def test_the_manifest_is_json_at_the_end_of_the_file(example):
    content = example.artifact.read_bytes()
    size = int.from_bytes(content[-16:-8], "little")
    assert json.loads(content[-48 - size : -48])["model"] == "mlp.onnx"


def test_the_library_is_an_ordinary_one(example):
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(example.artifact)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "TVMFFI" in symbols
    assert "Python" not in symbols


def test_the_same_model_gives_the_same_manifest(example, tmp_path):
    """But for the hash: LLVM may write neighbouring stores in another order."""
    compile_model(example.model, "llvm", tmp_path / "mlp.so")
    first, second = (
        read_artifact(path)[0].model_dump(exclude={"library_sha256"})
        for path in (example.artifact, tmp_path / "mlp.so")
    )
    assert first == second


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: b"", "no shared library"),
        (lambda content: b"PK" + content[2:], "no shared library"),
        (lambda content: content[:-1], "no manifest at its end"),
        (lambda content: content[:40], "no manifest at its end"),
        (lambda content: content + b"\n", "no manifest at its end"),
        (lambda content: content[:4096] + b"!" + content[4097:], "its library is damaged"),
        (lambda content: content[:9000] + content[9001:], "its library is damaged"),
        (lambda content: content.replace(b'"logits"', b'"logitt"'), "its manifest is damaged"),
        (lambda content: content[:-9] + b"\xff" + content[-8:], "impossible length"),
    ],
)
def test_damage_is_refused_before_anything_runs(damaged, never_opened, change, problem):
    with pytest.raises(ModelError, match=problem):
        load(damaged(change))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'"schema_version": 1', b'"schema_version": 2', "schema_version"),
        (b'"device": "cpu"', b'"device": "tpu"', "device"),
        (b'"float32"', b'"float64"', "dtype"),
        (b'"target": "llvm"', b'"aim": "llvm"', "target"),
        (b'"batch"', b"-1", "shape"),
    ],
)
def test_a_manifest_of_another_form_is_refused(damaged, never_opened, old, new, problem):
    def change(content):
        size = int.from_bytes(content[-16:-8], "little")
        library, text = content[: -48 - size], content[-48 - size : -48].replace(old, new)
        length = len(text).to_bytes(8, "little")
        return library + text + hashlib.sha256(text).digest() + length + content[-8:]

    with pytest.raises(ModelError, match=f"manifest: .*{problem}"):
        load(damaged(change))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ModelError, match=r"none.so: No such file"):
        load(tmp_path / "none.so")


def test_what_no_linker_wrote_is_refused(tmp_path):
    manifest = Manifest(
        model="m", target="llvm", device="cpu",
        processor=Processor(architecture="x86_64", name="x86-64", features=()),
        inputs=(), outputs=(TensorSpec(name="y", dtype="int8", shape=()),), tools={},
    )  # fmt: skip
    path = tmp_path / "model.so"
    path.write_bytes(pack_artifact(b"\x7fELF and nothing else", manifest))
    with pytest.raises(ModelError, match="TVM cannot load it"):
        load(path)
