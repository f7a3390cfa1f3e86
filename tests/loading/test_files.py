"""Files that are no model."""

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tbn_compile import ModelError, TbnError, compile_model
from tbn_compile.loading import load_model


def test_empty(refuse_model):
    refuse_model(b"", "the file is empty")


@pytest.mark.parametrize(
    "content", [b"\0", b"hello, world\n", b"\n" * 1000, b'{"a": 1}', b"PK\3\4" + bytes(99)]
)
def test_other_kinds(refuse_model, content):
    refuse_model(content, "not a")


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(refuse_model, seed):
    refuse_model(random.Random(seed).randbytes(seed * 97 + 1))


def test_every_truncation(model, tmp_path):
    """A prefix is refused, or is a model itself: protobuf has no end mark."""
    content = model.SerializeToString()
    source, output = tmp_path / "cut.onnx", tmp_path / "out.onnx"
    structure = [length for length in range(len(content)) if not 200 < length < len(content) - 500]
    for length in structure[:: 3 if os.environ.get("CI") is None else 1]:
        source.write_bytes(content[:length])
        try:
            compile_model(source, output=output)
        except ModelError as error:
            assert str(error).startswith("cut.onnx: ")
            assert not output.exists()
        output.unlink(missing_ok=True)
        assert [each.name for each in tmp_path.iterdir()] == ["cut.onnx"]


def test_missing(tmp_path, refuse):
    refuse(tmp_path / "nowhere.onnx", "no such file")


def test_a_folder(tmp_path, refuse):
    (tmp_path / "folder.onnx").mkdir()
    refuse(tmp_path / "folder.onnx", "not a regular file")


def test_a_pipe_is_not_opened(tmp_path, refuse):
    os.mkfifo(tmp_path / "pipe.onnx")
    refuse(tmp_path / "pipe.onnx", "not a regular file")


def test_a_device_is_not_opened(refuse):
    from pathlib import Path

    refuse(Path("/dev/zero"), "not a regular file")


def test_a_path_with_a_null_byte(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        load_model(tmp_path / "a\0b.onnx")


def test_a_hostile_file_name(tmp_path, refuse):
    source = tmp_path / "\x1b[31mred\n\u202e.onnx"
    source.write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        load_model(source)
    assert str(caught.value).isprintable()


def test_a_file_of_three_gigabytes_is_not_read(tmp_path, refuse):
    source = tmp_path / "huge.onnx"
    with source.open("wb") as file:
        file.truncate(3 << 30)
    refuse(source, "larger than 2 GB")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes_load_or_are_refused(model, tmp_path, data):
    content = bytearray(model.SerializeToString())
    weight = bytes(model.graph.initializer[0].raw_data)
    start = content.find(weight)
    structure = [*range(start), *range(start + len(weight), len(content))]
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.sampled_from(structure))
        if position < len(content):
            content[position] = data.draw(st.integers(0, 255))
    source, output = tmp_path / "changed.onnx", tmp_path / "out.onnx"
    source.write_bytes(content)
    output.unlink(missing_ok=True)
    try:
        compile_model(source, output=output)
    except TbnError as error:
        assert str(error).isprintable()
        assert not output.exists()
    assert {each.name for each in tmp_path.iterdir()} <= {"changed.onnx", "out.onnx"}
