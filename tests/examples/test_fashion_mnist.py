"""The shipped networks: what README says of them, what they store, and how they are made."""

import gzip
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from tbn_compile import compile_model, get_library_path

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"
MODELS = ["mlp.onnx", "mlp_training_graph.onnx", "cnn.onnx"]


def load_module(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


dataset = load_module("dataset")


def run_script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLE / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def weights(name: str) -> list[NDArray[np.float32]]:
    graph = onnx.load(EXAMPLE / name).graph
    arrays = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    return [array for array in arrays if array.dtype == np.float32 and array.ndim >= 2]


def distinct_magnitudes(rows: NDArray[np.float32]) -> list[int]:
    return [np.unique(np.abs(row)).size for row in rows]


@pytest.mark.usefixtures("installed_data")
@pytest.mark.parametrize("model", MODELS)
def test_accuracy_is_what_the_readme_says(model: str) -> None:
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{model}` \|.*?\| ([\d.]+) % \|", readme, re.MULTILINE)
    assert row is not None
    done = run_script("evaluate.py", EXAMPLE / model)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{model}: accuracy {row[1]}% on 10000 images\n"


@pytest.mark.usefixtures("installed_data")
def test_training_graph_predicts_the_same_classes() -> None:
    arguments = [EXAMPLE / "mlp.onnx", "--compare", EXAMPLE / "mlp_training_graph.onnx"]
    done = run_script("evaluate.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "mlp_training_graph.onnx: the same class on all 10000 images" in done.stdout


@pytest.mark.usefixtures("installed_data")
def test_compare_notices_another_network() -> None:
    done = run_script("evaluate.py", EXAMPLE / "mlp.onnx", "--compare", EXAMPLE / "cnn.onnx")
    assert done.returncode == 1, done.stderr
    assert re.search(r"cnn.onnx: a different class on \d+ of 10000 images", done.stdout)


@pytest.mark.usefixtures("installed_data")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "library", [(), ("--library", get_library_path())], ids=["stock", "library"]
)
def test_compiled_networks_predict_the_same_classes(
    tmp_path: Path, model: str, library: tuple[str, ...]
) -> None:
    compiled = tmp_path / "compiled.onnx"
    report = compile_model(EXAMPLE / model, output=compiled)
    assert [layer.status for layer in report.layers] == ["lowered"] * len(report.layers)
    done = run_script("evaluate.py", EXAMPLE / model, "--compare", compiled, *library)
    assert "compiled.onnx: the same class on all 10000 images" in done.stdout, done.stderr


@pytest.mark.parametrize("model", ["mlp.onnx", "mlp_training_graph.onnx"])
def test_compiled_mlp_stores_its_tiles_scales_and_biases_alone(tmp_path: Path, model: str) -> None:
    compile_model(EXAMPLE / model, output=tmp_path / "mlp.onnx")
    arrays = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "mlp.onnx").graph.initializer]
    assert sum(array.nbytes for array in arrays if array.dtype == np.uint8) <= 3_300
    floats = [array for array in arrays if array.dtype != np.uint8]
    assert sorted(array.size for array in floats) == [1, 4, 10, 128]
    assert {array.dtype for array in floats} == {np.dtype(np.float32)}


def test_mlp_weights_are_tiled() -> None:
    first, last = sorted(weights("mlp.onnx"), key=np.size, reverse=True)
    assert first.shape == (128, 784)
    tiles = first.reshape(4, 25_088)
    assert np.array_equal(np.sign(tiles), np.sign(tiles[:1]).repeat(4, axis=0))
    assert distinct_magnitudes(tiles) == [1] * 4
    assert last.shape == (10, 128)
    assert distinct_magnitudes(last.reshape(1, -1)) == [1]


@pytest.mark.parametrize(("shape", "tiles"), [((32, 16, 3, 3), 4), ((64, 32, 3, 3), 4)])
def test_cnn_rows_repeat_up_to_a_signed_scale(shape: tuple[int, ...], tiles: int) -> None:
    (weight,) = [weight for weight in weights("cnn.onnx") if weight.shape == shape]
    rows = weight.reshape(shape[0], -1)
    assert distinct_magnitudes(rows) == [1] * len(rows)
    patterns = np.sign(rows).reshape(tiles, -1, rows.shape[1])
    flips = patterns[:, :, :1] * patterns[:1, :, :1]
    assert np.array_equal(patterns * flips, patterns[:1].repeat(tiles, axis=0))
    assert (flips < 0).any()


def test_cnn_first_and_last_layers_are_binary() -> None:
    shapes = {weight.shape: weight for weight in weights("cnn.onnx")}
    rows = shapes[16, 1, 3, 3].reshape(16, -1)
    assert distinct_magnitudes(rows) == [1] * 16
    assert distinct_magnitudes(shapes[10, 3_136].reshape(1, -1)) == [1]


@pytest.mark.parametrize("model", MODELS)
def test_models_are_valid_and_anonymous(model: str) -> None:
    onnx.checker.check_model(EXAMPLE / model, full_check=True)
    content = (EXAMPLE / model).read_bytes()
    for trace in (b"site-packages", b"stack_trace", b"/home", b"/tmp", b"/root", b"python"):
        assert trace not in content


def test_shipped_files_are_small() -> None:
    assert sum(path.stat().st_size for path in EXAMPLE.iterdir() if path.is_file()) < 2_000_000


@pytest.mark.usefixtures("installed_data")
def test_sample_images_are_the_first_test_images() -> None:
    images, labels = dataset.load("test")
    assert images.shape == (10_000, 1, 28, 28)
    assert (images.min(), images.max()) == (0, 1)
    with np.load(EXAMPLE / "test_images.npz") as samples:
        assert samples["images"].dtype == np.float32
        np.testing.assert_array_equal(samples["images"], images[:16])
        np.testing.assert_array_equal(samples["labels"], labels[:16])


@pytest.mark.parametrize("model", MODELS)
def test_sample_images_are_classified(model: str) -> None:
    session = onnxruntime.InferenceSession(EXAMPLE / model, providers=["CPUExecutionProvider"])
    (model_input,) = session.get_inputs()
    with np.load(EXAMPLE / "test_images.npz") as samples:
        batch = samples["images"].reshape(-1, *model_input.shape[1:])
        (logits,) = session.run(["logits"], {"input": batch})
        assert np.mean(logits.argmax(1) == samples["labels"]) > 0.8


@pytest.mark.usefixtures("installed_data")
def test_training_is_reproducible_and_writes_what_is_shipped(tmp_path: Path) -> None:
    runs = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        done = run_script("train.py", "mlp", "--epochs", "1", "--folder", folder)
        assert done.returncode == 0, done.stderr
        assert re.search(r"mlp: test accuracy [678]\d\.\d\d%", done.stdout)
        runs.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert runs[0] == runs[1]
    assert set(runs[0]) == {"mlp.onnx", "mlp_training_graph.onnx", "test_images.npz"}


def test_missing_data_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        dataset.load("train")


def test_idx_reader(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    header = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3])
    path.write_bytes(gzip.compress(header + bytes(range(6))))
    assert dataset.read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(gzip.compress(b"\0\0\x0d" + header[3:] + bytes(24)))
    with pytest.raises(ValueError, match="not an IDX file of unsigned bytes"):
        dataset.read_idx(path)
