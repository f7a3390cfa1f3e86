"""The operators in ONNX Runtime against expand-then-multiply in float64."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_strategies import DTYPES, conv_cases, gemm_cases
from onnx import TensorProto, helper
from runtime_models import (
    ELEMENT_TYPES,
    Layer,
    make_model,
    make_session,
    relative_error,
    run_layer,
)

ROUNDERS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Half a unit in the last place of the output type, with room for float32 sums.
TOLERANCES = {"float32": 2e-5, "float16": 6e-4, "bfloat16": 5e-3}

properties = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def rounded(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float64]:
    return values.astype(ROUNDERS[dtype]).astype(np.float64)


def check(layer: Layer, x: npt.NDArray[np.float32], library: Path, dtype: str, **how: Any) -> None:
    """Compare on inputs that are exact in `dtype`, so only sums and the result are rounded."""
    exact = dataclasses.replace(
        layer,
        scale=rounded(layer.scale, dtype),
        bias=None if layer.bias is None else rounded(layer.bias, dtype),
    )
    x = rounded(x, dtype).astype(np.float32)
    y = run_layer(exact, x, library, dtype, **how)
    assert relative_error(y, exact.expected(x)) < TOLERANCES[dtype]


@given(gemm_cases(), DTYPES, st.booleans(), st.integers(1, 2))
@properties
def test_gemm_matches_expanded_weight(
    library: Path,
    case: tuple[Layer, npt.NDArray[np.float32]],
    dtype: str,
    constant: bool,
    threads: int,
) -> None:
    check(*case, library, dtype, constant=constant, threads=threads)


@given(conv_cases(), DTYPES, st.booleans(), st.integers(1, 2))
@properties
def test_conv_matches_expanded_weight(
    library: Path,
    case: tuple[Layer, npt.NDArray[np.float32]],
    dtype: str,
    constant: bool,
    threads: int,
) -> None:
    check(*case, library, dtype, constant=constant, threads=threads)


def random_gemm(
    outputs: int, inputs: int, tile_length: int, seed: int = 0, **attributes: Any
) -> Layer:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, tile_length).astype(np.uint8)
    shape = (outputs, inputs)
    return Layer(shape, bits, rng.normal(size=outputs), inputs, attributes=attributes)


@pytest.mark.parametrize("shift", [0.0, 3.0], ids=["centred", "positive"])
@pytest.mark.parametrize("ones", [False, True], ids=["random_bits", "all_ones"])
def test_long_sums_stay_accurate(library: Path, shift: float, ones: bool) -> None:
    layer = random_gemm(64, 16384, 16 * 16384)
    if ones:
        layer.bits[:] = 1
    x = (np.random.default_rng(1).normal(size=(3, 16384)) + shift).astype(np.float32)
    assert relative_error(run_layer(layer, x, library), layer.expected(x)) < 2e-5


def test_nan_and_infinity_travel_as_in_a_dense_layer(library: Path) -> None:
    layer = random_gemm(40, 64, 10 * 64, activation_min=0.0, activation_max=6.0)
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    x[0, 7] = np.nan
    x[1, 9] = np.inf
    y = run_layer(layer, x, library)
    assert np.isnan(y[0]).all()
    assert np.isin(y[1], [0.0, 6.0]).all()
    assert relative_error(y[2:], layer.expected(x[2:])) < 2e-5


@pytest.mark.parametrize(
    ("x_shape", "y_shape"),
    [(["batch", 48], ["batch", 64]), ([2, "time", 48], [2, "time", 64]), ([48], [64])],
)
def test_gemm_shape_is_inferred(
    library: Path, x_shape: list[int | str], y_shape: list[int | str]
) -> None:
    model = make_model(random_gemm(64, 48, 96), x_shape=x_shape)
    assert make_session(model, library).get_outputs()[0].shape == y_shape


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_inferred_element_type_is_the_inputs(library: Path, dtype: str) -> None:
    layer = random_gemm(64, 48, 96)
    model = make_model(layer, dtype, x_shape=[2, 48])
    typed = helper.make_tensor_value_info(f"Y_{dtype}", ELEMENT_TYPES[dtype], None)
    model.graph.value_info.append(typed)
    session = make_session(model, library)
    assert session.get_outputs()[0].shape == [2, 64]
    x = np.ones((2, 48), np.float32)
    y = np.asarray(session.run(None, {"X": x})[0])
    assert relative_error(y, layer.expected(x)) < 2e-2


def test_conv_shape_is_inferred(library: Path) -> None:
    layer = Layer(
        (8, 3, 3, 3), np.ones(54, np.uint8), np.ones(1), 216,
        attributes={"strides": [2, 1], "pads": [1, 0, 1, 0]},
    )  # fmt: skip
    model = make_model(layer, x_shape=["batch", 3, 9, 9])
    assert make_session(model, library).get_outputs()[0].shape == ["batch", 8, 5, 7]


def test_native_kernel_wins_over_the_models_own_function(library: Path) -> None:
    layer = random_gemm(8, 16, 32)
    model = make_model(layer)
    zero = helper.make_function(
        "ai.tbn",
        "TiledBinaryGemm",
        ["X", "tile", "scale"],
        ["Y"],
        [
            helper.make_node(
                "Constant", [], ["zero"],
                value=helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
            ),
            helper.make_node("Mul", ["X", "zero"], ["Y"]),
        ],
        [helper.make_opsetid("", 17)],
        attributes=list(layer.node_attributes()),
    )  # fmt: skip
    model.functions.append(zero)
    x = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
    y = make_session(model, library).run(None, {"X": x})[0]
    assert relative_error(np.asarray(y), layer.expected(x)) < 2e-5


def test_bfloat16_runs_where_stock_kernels_do_not(library: Path) -> None:
    """Stock CPU kernels only cast bfloat16; ours multiplies."""
    dense = helper.make_graph(
        [
            helper.make_node("Cast", ["X"], ["x"], to=TensorProto.BFLOAT16),
            helper.make_node("Gemm", ["x", "x"], ["y"]),
            helper.make_node("Cast", ["y"], ["Y"], to=TensorProto.FLOAT),
        ],
        "dense",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(dense, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED.*Gemm"):
        make_session(model, library)
    check(random_gemm(64, 48, 96), np.ones((2, 48), np.float32), library, "bfloat16")


def test_one_session_serves_many_threads(library: Path) -> None:
    layer = random_gemm(200, 300, 50 * 300)
    session = make_session(make_model(layer), library, threads=2)
    inputs = [np.random.default_rng(i).normal(size=(9, 300)).astype(np.float32) for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda x: session.run(None, {"X": x})[0], inputs))
    for x, y in zip(inputs, outputs, strict=True):
        assert relative_error(np.asarray(y), layer.expected(x)) < 2e-5
