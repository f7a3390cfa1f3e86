"""Hypothesis strategies for tiled binary layers of every form the operators accept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from runtime_models import Layer

DTYPES = st.sampled_from(["float32", "float32", "float16", "bfloat16"])


@st.composite
def layers(
    draw: st.DrawFn,
    weight_shape: tuple[int, ...],
    outputs: int,
    fast: int,
    attributes: dict[str, Any],
) -> Layer:
    """A layer of that shape; `fast` is the number of weights in one stored row."""
    elements = math.prod(weight_shape)
    tile_length = draw(
        st.one_of(
            st.integers(1, elements // fast).map(lambda rows: rows * fast),
            st.sampled_from([p for p in range(1, 17) if elements % p == 0]).map(
                lambda p: elements // p
            ),
            st.integers(1, 70),
            st.integers(1, elements + 9),
        )
    )
    offset = draw(st.one_of(st.just(0), st.integers(0, tile_length - 1)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale_count, scale_length, scale_offset = draw(
        st.one_of(
            st.just((1, elements, 0)),
            st.just((-(-(elements + offset) // tile_length), tile_length, offset)),
            st.just((elements // fast, fast, 0)),
            st.just((fast, 1, 0)),
            st.tuples(st.integers(1, 6), st.integers(1, elements)).flatmap(
                lambda s: st.tuples(st.just(s[0]), st.just(s[1]), st.integers(0, s[0] * s[1] - 1))
            ),
        )
    )
    scale = rng.normal(size=scale_count)
    if draw(st.booleans()):
        scale[rng.integers(scale_count)] = 0.0
    bounds = draw(st.sampled_from([{}, {"activation_min": 0.0}, _RELU6]))
    return Layer(
        weight_shape,
        rng.integers(0, 2, tile_length).astype(np.uint8),
        scale,
        scale_length,
        offset,
        scale_offset,
        rng.normal(size=outputs) if draw(st.booleans()) else None,
        {**attributes, **bounds},
    )


_RELU6 = {"activation_min": 0.0, "activation_max": 6.0}


@st.composite
def gemm_cases(draw: st.DrawFn) -> tuple[Layer, npt.NDArray[np.float32]]:
    """A Gemm layer and an input of any rank, empty ones included."""
    outputs = draw(st.integers(1, 100))
    inputs = draw(st.one_of(st.integers(1, 100), st.integers(1, 1200)))
    transposed = draw(st.integers(0, 1))
    shape = (outputs, inputs) if transposed else (inputs, outputs)
    layer = draw(layers(shape, outputs, shape[1], {"transB": transposed}))
    leading = draw(st.lists(st.integers(0, 5), max_size=3))
    return layer, _input(draw, (*leading, inputs))


@st.composite
def conv_cases(draw: st.DrawFn) -> tuple[Layer, npt.NDArray[np.float32]]:
    """A Conv layer of 1 to 3 spatial dimensions and an input that fits it."""
    axes = draw(st.integers(1, 3))
    per_axis = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    group = draw(st.sampled_from([1, 1, 1, 2, 3, 8, 20, 33]))
    outputs = group * draw(st.integers(1, 40 // group))
    channels = draw(st.sampled_from([1, 1, 3, 8, 13, 45]))
    kernel, strides, dilations = draw(per_axis), draw(per_axis), draw(per_axis)
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    padding = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding == "pads":
        pads = st.lists(st.integers(0, 3), min_size=2 * axes, max_size=2 * axes)
        attributes["pads"] = draw(pads)
    else:
        attributes["auto_pad"] = padding
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    spatial = [draw(st.integers(r, r + (6 if axes == 3 else 20))) for r in reach]
    shape = (outputs, channels, *kernel)
    layer = draw(layers(shape, outputs, math.prod(shape[1:]), attributes))
    batch = draw(st.integers(0, 3))
    return layer, _input(draw, (batch, channels * group, *spatial))


def _input(draw: st.DrawFn, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(size=shape).astype(np.float32)
