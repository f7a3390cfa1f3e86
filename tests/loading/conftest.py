"""A valid model to damage, and what every refusal must look like."""

import contextlib

import numpy as np
import onnx
import pytest
from helpers.graphs import GraphBuilder
from helpers.weights import tiled_array

from tbn_compile import ModelError, compile_model


@pytest.fixture
def model():
    """y = relu(x · wᵀ + c), with a tiled weight."""
    graph = GraphBuilder()
    weight = graph.weight("w", tiled_array((32, 64), 512, 0.3))
    bias = graph.weight("c", np.ones(32, np.float32))
    value = graph.node("Gemm", [graph.input("x", [5, 64]), weight, bias], transB=1)
    graph.node("Relu", [value], "y")
    return graph.model("y", rank=2)


@pytest.fixture
def refuse(tmp_path):
    """Compile what lies at a path, and expect one line that names it and nothing written."""

    def check(source, message="", earlier=b"what was there"):
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        output = folder / "artifact.onnx"
        output.write_bytes(earlier)
        with pytest.raises(ModelError) as caught:
            compile_model(source, output=output)
        text = str(caught.value)
        assert text.isprintable()
        assert len(text) <= 400
        assert text.startswith(f"{source.name[:70]}"), text
        assert message in text
        assert output.read_bytes() == earlier
        assert [each.name for each in folder.iterdir()] == ["artifact.onnx"]
        with contextlib.suppress(FileNotFoundError):
            output.unlink()
        return text

    return check


@pytest.fixture
def refuse_model(tmp_path, refuse):
    """Likewise, for a model in memory."""

    def check(model, message=""):
        source = tmp_path / "bad.onnx"
        content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        source.write_bytes(content)
        return refuse(source, message)

    return check
