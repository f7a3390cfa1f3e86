"""Malformed layers and inputs give one clear line as a Python exception, never a crash."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_models import Layer, make_model, make_session

GEMM = Layer((6, 8), np.ones(24, np.uint8), np.ones(2), 24, bias=np.zeros(6))
CONV = Layer((6, 4, 3, 3), np.ones(108, np.uint8), np.ones(2), 108, bias=np.zeros(6))
HUGE = 2**62

BAD_GEMM_ATTRIBUTES: list[tuple[dict[str, Any], str]] = [
    ({"weight_shape": None}, "attribute weight_shape is missing"),
    ({"tile_length": None}, "attribute tile_length is missing"),
    ({"scale_length": None}, "attribute scale_length is missing"),
    ({"weight_shape": 48}, "attribute weight_shape must be a list of integers"),
    ({"weight_shape": [6.0, 8.0]}, "weight_shape"),
    ({"tile_length": 24.0}, "attribute tile_length must be an integer"),
    ({"offset": 1.0}, "attribute offset must be an integer"),
    ({"offset": "1"}, "attribute offset must be an integer"),
    ({"transB": [1]}, "attribute transB must be an integer"),
    ({"activation_min": 1}, "attribute activation_min must be a float"),
    ({"weight_shape": [48]}, "must have 2 dimensions"),
    ({"weight_shape": [6, 4, 2]}, "must have 2 dimensions"),
    ({"weight_shape": [6, 0]}, "needs every length between 1 and"),
    ({"weight_shape": [-6, 8]}, "needs every length between 1 and"),
    ({"weight_shape": [2**40, 2**40]}, "has more than 2\\^48 elements"),
    ({"weight_shape": [HUGE, 4]}, "needs every length between 1 and"),
    ({"tile_length": 0}, "tile_length 0 must lie between"),
    ({"tile_length": -24}, "tile_length -24 must lie between"),
    ({"tile_length": HUGE}, "must lie between 1 and 2\\^48"),
    ({"tile_length": 25}, "tile has shape \\[3\\], but tile_length 25 needs uint8\\[4\\]"),
    ({"tile_length": 16}, "tile_length 16 needs uint8\\[2\\]"),
    ({"offset": -1}, "offset -1 must lie in"),
    ({"offset": 24}, "offset 24 must lie in"),
    ({"offset": 2**63 - 1}, "must lie in"),
    ({"scale_length": 0}, "scale_length 0 must lie between"),
    ({"scale_length": HUGE}, "must lie between 1 and 2\\^48"),
    ({"scale_offset": -1}, "scale_offset -1 must not be negative"),
    ({"scale_offset": 48}, "scale_offset 48 must be below"),
    ({"scale_offset": 2**63 - 1}, "must be below"),
    ({"transB": 2}, "transB 2 must be 0 or 1"),
    ({"activation_min": 1.0, "activation_max": 0.0}, "activation_min must not exceed"),
    ({"activation_min": float("nan")}, "neither may be NaN"),
]

BAD_CONV_ATTRIBUTES: list[tuple[dict[str, Any], str]] = [
    ({"weight_shape": [6, 36]}, "must be \\[N,channels/group,k1..kn\\]"),
    ({"weight_shape": [6, 4, 1, 3, 1, 3]}, "must be \\[N,channels/group,k1..kn\\]"),
    ({"weight_shape": [6, 4, 0, 3]}, "needs every length between 1 and"),
    ({"strides": [1]}, "strides \\[1\\] must have 2 values"),
    ({"strides": [1, 0]}, "strides \\[1,0\\] must have"),
    ({"strides": [1, HUGE]}, "must have 2 values between 1 and"),
    ({"strides": 2}, "attribute strides must be a list of integers"),
    ({"dilations": [1, 1, 1]}, "dilations \\[1,1,1\\] must have 2 values"),
    ({"dilations": [0, 1]}, "dilations \\[0,1\\] must have"),
    ({"dilations": [2**40, 1]}, "stretch the kernel beyond"),
    ({"pads": [1, 1]}, "pads \\[1,1\\] must have 4 values"),
    ({"pads": [0, 0, 0, -1]}, "pads \\[0,0,0,-1\\] must have"),
    ({"pads": [0, 0, 0, HUGE]}, "must have 4 values between 0 and"),
    ({"auto_pad": "SAME"}, "auto_pad must be NOTSET"),
    ({"auto_pad": 1}, "attribute auto_pad must be a string"),
    ({"auto_pad": "VALID", "pads": [0, 0, 0, 0]}, "pads and auto_pad cannot both be given"),
    ({"group": 0}, "group 0 must divide"),
    ({"group": 4}, "group 4 must divide"),
    ({"group": -1}, "group -1 must divide"),
]

BAD_TENSORS: list[tuple[dict[str, Any], str]] = [
    ({"scale": np.ones(0)}, "scale has shape \\[0\\]"),
    ({"scale": np.ones((2, 1))}, "scale has shape \\[2,1\\]"),
    ({"scale": np.array(1.0)}, "scale has shape \\[\\]"),
    ({"bias": np.zeros(5)}, "bias has shape \\[5\\], but weight_shape needs \\[6\\]"),
    ({"bias": np.zeros((6, 1))}, "bias has shape \\[6,1\\]"),
]


def refuse(layer: Layer, library: Path, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        make_session(make_model(layer), library)
    name = "TiledBinaryConv" if layer.is_conv else "TiledBinaryGemm"
    line = next(part for part in str(caught.value).splitlines() if name in part)
    assert f"{name} 'layer': " in line


@pytest.mark.parametrize(("attributes", "message"), BAD_GEMM_ATTRIBUTES)
def test_bad_gemm_attributes(attributes: dict[str, Any], message: str, library: Path) -> None:
    refuse(dataclasses.replace(GEMM, attributes=attributes), library, message)


@pytest.mark.parametrize(("attributes", "message"), BAD_CONV_ATTRIBUTES)
def test_bad_conv_attributes(attributes: dict[str, Any], message: str, library: Path) -> None:
    refuse(dataclasses.replace(CONV, attributes=attributes), library, message)


@pytest.mark.parametrize("layer", [GEMM, CONV], ids=["gemm", "conv"])
@pytest.mark.parametrize(("tensors", "message"), BAD_TENSORS)
def test_bad_tensors(layer: Layer, tensors: dict[str, Any], message: str, library: Path) -> None:
    refuse(dataclasses.replace(layer, **tensors), library, message)


@pytest.mark.parametrize("name", ["tile", "scale", "bias"])
def test_bad_tensors_of_a_run(name: str, library: Path) -> None:
    feeds = {
        "X": np.ones((2, 8), np.float32),
        "tile": GEMM.tile,
        "scale": np.ones(2, np.float32),
        "bias": np.zeros(6, np.float32),
    }
    model = make_model(GEMM, constant=False)
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    session = make_session(model, library)
    session.run(None, feeds)
    feeds[name] = feeds[name].reshape(1, -1)
    with pytest.raises(Exception, match=f"TiledBinaryGemm 'layer': {name} has shape \\[1,"):
        session.run(None, feeds)


@pytest.mark.parametrize("shape", [(), (7,), (2, 9), (8, 2), (2, 0)])
def test_bad_gemm_input(shape: tuple[int, ...], library: Path) -> None:
    session = make_session(make_model(GEMM), library)
    with pytest.raises(Exception, match="the last dimension of X must be K = 8"):
        session.run(None, {"X": np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 9), "needs 4 dimensions"),
        ((1, 4, 9, 9, 9), "needs 4 dimensions"),
        ((1, 5, 9, 9), "X has 5 channels"),
        ((1, 0, 9, 9), "X has 0 channels"),
        ((1, 4, 2, 9), "too small for the kernel"),
        ((1, 4, 9, 0), "too small for the kernel"),
    ],
)
def test_bad_conv_input(shape: tuple[int, ...], message: str, library: Path) -> None:
    session = make_session(make_model(CONV), library)
    with pytest.raises(Exception, match=message):
        session.run(None, {"X": np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    ("weight_shape", "group"),
    [((6, 4, 3, 3), 1), ((64, 32, 3, 3), 1), ((16, 1, 3, 3), 16)],
    ids=["direct", "lookup", "depthwise"],
)
def test_padding_beyond_all_memory_is_an_error(
    weight_shape: tuple[int, ...], group: int, library: Path
) -> None:
    far = {"dilations": [2**38] * 2, "pads": [2**38] * 4, "group": group}
    layer = Layer(weight_shape, np.ones(108, np.uint8), np.ones(1), 1, attributes=far)
    session = make_session(make_model(layer), library)
    with pytest.raises(Exception, match="needs more memory than can be addressed"):
        session.run(None, {"X": np.ones((1, weight_shape[1] * group, 9, 9), np.float32)})


def test_a_tiny_tile_may_claim_a_huge_weight(library: Path) -> None:
    """Repeats cost nothing to prepare: neither memory nor time grows with the weight."""
    layer = Layer((2**23, 2**24), np.ones(24, np.uint8), np.ones(1), 1)
    session = make_session(make_model(layer), library)
    assert session.get_inputs()[0].name == "X"


def test_memory_that_cannot_be_had_is_an_error(library: Path) -> None:
    layer = Layer((2**40, 2**8), np.ones(24, np.uint8), np.ones(1), 1)
    with pytest.raises(Exception, match="out of memory"):
        make_session(make_model(layer), library)
