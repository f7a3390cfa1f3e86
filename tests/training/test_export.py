"""Exported files against PyTorch, in ONNX Runtime, and what the files hold."""

import os
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from tbn_compile.training import (
    ExportError,
    TiledConv1d,
    TiledConv2d,
    TiledConv3d,
    TiledLinear,
    export,
    freeze,
    tile_model,
)

TRAINING_GRAPH = ["Reshape", "ReduceSum", "Sign", "Sub", "Sign", "Mul", "Reshape"]
# Large enough that the exporter does not fold the tile graph into a constant.
FEATURES = 512


def perceptron(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(TiledLinear(FEATURES, 256, **options), nn.ReLU(), TiledLinear(256, 10))


def run(path: Path, batch: torch.Tensor) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output: NDArray[np.float32] = session.run(None, {"input": batch.numpy()})[0]
    return output


def initializers(path: Path) -> dict[str, NDArray[Any]]:
    graph = onnx.load(path).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def assert_equals_torch(model: nn.Module, path: Path, *shape: int) -> None:
    batch = torch.randn(shape)
    with torch.no_grad():
        expected = model(batch).numpy()
    assert np.abs(run(path, batch) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("scale", ["per_layer", "per_tile"])
@pytest.mark.parametrize("scale_from", ["separate", "weight"])
def test_perceptron_equals_torch(tmp_path: Path, frozen: bool, scale: str, scale_from: str) -> None:
    model = perceptron(scale=scale, scale_from=scale_from).eval()
    path = tmp_path / "model.onnx"
    export(freeze(model) if frozen else model, path, torch.zeros(1, FEATURES))
    onnx.checker.check_model(path, full_check=True)
    assert_equals_torch(model, path, 5, FEATURES)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (TiledConv1d(4, 8, 3, padding=1, min_size=0), (2, 4, 9)),
        (TiledConv2d(4, 8, 3, stride=2, groups=2, min_size=0), (3, 4, 9, 8)),
        (TiledConv3d(2, 4, 2, dilation=2, min_size=0), (1, 2, 4, 5, 3)),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_convolutions_equal_torch(
    tmp_path: Path, layer: nn.Module, shape: tuple[int, ...], frozen: bool
) -> None:
    model = layer.eval()
    path = tmp_path / "model.onnx"
    export(freeze(model) if frozen else model, path, torch.zeros(shape))
    assert_equals_torch(model, path, *shape)


def test_batch_is_dynamic_and_names_are_given(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(perceptron().eval(), path, torch.zeros(1, FEATURES), output_names=["logits"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("input", ["batch", FEATURES])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 10])]
    for batch in (1, 7):
        assert run(path, torch.zeros(batch, FEATURES)).shape == (batch, 10)


def test_training_graph_holds_the_latent_tensors(tmp_path: Path) -> None:
    model: Any = perceptron().eval()
    path = tmp_path / "model.onnx"
    export(model, path, torch.zeros(1, FEATURES))
    stored = initializers(path)
    name = "0.parametrizations.weight.original"
    for index, latent in enumerate(model[0].parametrizations.weight.parameters(recurse=False)):
        np.testing.assert_array_equal(stored[f"{name}{index}"], latent.detach().numpy())

    nodes = onnx.load(path).graph.node
    chain, value = [], f"{name}0"
    while not chain or chain[-1] not in {"Gemm", "MatMul"}:
        node = next(node for node in nodes if value in node.input)
        chain.append(node.op_type)
        value = node.output[0]
    assert chain[:-1] == TRAINING_GRAPH


@pytest.mark.parametrize("scale", ["per_layer", "per_tile"])
def test_dense_weight_is_exactly_tiled(tmp_path: Path, scale: str) -> None:
    path = tmp_path / "model.onnx"
    export(freeze(perceptron(scale=scale).eval()), path, torch.zeros(1, FEATURES))
    (weight,) = [w for w in initializers(path).values() if w.size == 256 * FEATURES]
    tiles = weight.reshape(4, -1)
    assert np.array_equal(np.sign(tiles), np.sign(tiles[:1]).repeat(4, axis=0))
    assert [np.unique(np.abs(tile)).size for tile in tiles] == [1] * 4
    assert np.unique(np.abs(tiles)).size == (1 if scale == "per_layer" else 4)


def test_folded_batch_norm_keeps_the_tile_up_to_a_scale_per_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16)
    norm.weight.data.uniform_(-1, 1)
    norm.running_var = torch.rand(16) + 0.5
    model = nn.Sequential(TiledConv2d(8, 16, 3, bias=False, min_size=0), norm).eval()
    path = tmp_path / "model.onnx"
    export(freeze(model), path, torch.zeros(1, 8, 5, 5))
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Conv"]
    (weight,) = [w for w in initializers(path).values() if w.ndim == 4]
    rows = weight.reshape(16, -1)
    assert all(np.unique(np.abs(row)).size == 1 for row in rows)
    signs = np.sign(rows) * np.sign(norm.weight.detach().numpy())[:, np.newaxis]
    assert (norm.weight < 0).any()
    assert np.array_equal(signs, np.tile(signs[:4], (4, 1)))


def test_training_mode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"TiledLinear is in training mode; call \.eval\(\)"):
        export(TiledLinear(4, 4), path, torch.zeros(1, 4))
    assert not path.exists()


def test_a_layer_in_training_mode_is_refused(tmp_path: Path) -> None:
    model = perceptron().eval()
    model[2].train()
    with pytest.raises(ExportError, match="TiledLinear, in layer '2', is in training mode; call"):
        export(model, tmp_path / "model.onnx", torch.zeros(1, FEATURES))


class Encoder(nn.Module):
    """Attention, convolution with BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patches(images)).flatten(2).transpose(1, 2)
        return self.head(self.encoder(x).mean(1))


@pytest.mark.parametrize("options", [{}, {"latent": "aggregate", "scale": "per_layer"}])
@pytest.mark.parametrize("frozen", [False, True])
def test_every_tile_of_a_model_is_lowered(tmp_path: Path, frozen: bool, options: Any) -> None:
    torch.manual_seed(0)
    model = tile_model(Encoder(), 4, min_size=0, skip=["head"], **options).eval()
    path = tmp_path / "model.onnx"
    report = export(freeze(model) if frozen else model, path, torch.zeros(1, 3, 16, 16))
    assert sorted(prod(layer.shape) for layer in report.lowered) == sorted(
        [32 * 48, 3 * 32 * 32, 32 * 32, 64 * 32, 32 * 64]
    )
    assert {layer.tiles for layer in report.lowered} == {4}
    dense = [layer for layer in report.layers if layer.shape and layer.status == "left alone"]
    assert [sorted(layer.shape) for layer in dense] == [[10, 32]]
    assert_equals_torch(model, path, 3, 3, 16, 16)


class LeftOperand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second.weight @ self.first(x).transpose(1, 2)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_tile_that_the_compiler_leaves_alone_is_named(tmp_path: Path, frozen: bool) -> None:
    model = tile_model(LeftOperand(), min_size=0).eval()
    path = tmp_path / "model.onnx"
    message = r"the tile of second is not lowered in model\.onnx; left alone are: .*left operand"
    with pytest.raises(ExportError, match=message):
        export(freeze(model) if frozen else model, path, torch.zeros(1, 3, 64))
    assert path.exists()


class UsedTwice(nn.Module):
    """One layer is used twice, and the weight of another is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(64, 64)
        self.changed = nn.Linear(64, 64)
        self.noise = nn.Buffer(torch.rand(64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(x).relu())
        return nn.functional.linear(x, self.changed.weight + self.noise)


def test_a_layer_that_is_used_twice_stands_for_no_other(tmp_path: Path) -> None:
    model = tile_model(UsedTwice(), min_size=0).eval()
    message = r"the tile of twice or changed is not lowered in model\.onnx; left alone are: .*magn"
    with pytest.raises(ExportError, match=message):
        export(freeze(model), tmp_path / "model.onnx", torch.zeros(1, 64))


class Auxiliary(nn.Module):
    """A second head for training."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 64)
        self.auxiliary = nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.head(x), self.auxiliary(x)], 1) if self.training else self.head(x)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_that_evaluation_leaves_out_is_not_missed(tmp_path: Path, frozen: bool) -> None:
    model = tile_model(Auxiliary(), min_size=0).eval()
    report = export(freeze(model) if frozen else model, tmp_path / "model.onnx", torch.zeros(1, 64))
    assert [layer.shape for layer in report.lowered] == [(64, 64)]


def test_double_precision_is_named(tmp_path: Path) -> None:
    model = perceptron().double().eval()
    with pytest.raises(ExportError, match=r"the tile of 0 or 2 is not lowered.*float64; only f"):
        export(model, tmp_path / "model.onnx", torch.zeros(1, FEATURES, dtype=torch.float64))


class FixedBatch(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(2, 4)


def test_fixed_batch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    message = "FixedBatch computes with a fixed first dimension of input 'input'"
    with pytest.raises(ExportError, match=message):
        export(FixedBatch().eval(), path, torch.zeros(1, 4))
    assert not path.exists()


class TwoInputs(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left + right, left * right


def test_inputs_share_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    examples = torch.zeros(1, 4), torch.zeros(1, 4)
    names = {"input_names": ["a", "b"], "output_names": ["sum", "product"]}
    export(TwoInputs().eval(), path, *examples, **names)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {i.name: i.shape for i in session.get_inputs()} == {"a": ["batch", 4], "b": ["batch", 4]}
    assert [o.name for o in session.get_outputs()] == ["sum", "product"]


SCRIPT = """
import sys, torch
from tbn_compile.training import TiledConv2d, export
torch.manual_seed(0)
export(TiledConv2d(64, 128, 3).eval(), sys.argv[1], torch.zeros(1, 64, 5, 5))
"""


def test_bytes_do_not_depend_on_the_process_and_hold_no_traces(tmp_path: Path) -> None:
    files = [tmp_path / "first.onnx", tmp_path / "second.onnx"]
    for seed, path in enumerate(files):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-W", "error", "-c", SCRIPT, str(path)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout == ""
        assert done.stderr == ""
    content = files[0].read_bytes()
    assert content == files[1].read_bytes()
    for trace in (b"site-packages", b"stack_trace", b"/python", str(tmp_path).encode()):
        assert trace not in content
    model = onnx.load(files[0])
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not any(value.metadata_props for value in model.graph.value_info)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["first.onnx", "second.onnx"]
