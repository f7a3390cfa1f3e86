"""Models from ONNX Runtime's static quantiser in C: the same integers, and what they save."""

import numpy as np
import onnx
import pytest
from helpers.programs import compile_for, run_natively
from helpers.quantization import (
    EXAMPLES,
    example_images,
    quantize,
    quantized_example,
    run_unoptimized,
    without_first_quantize,
)

from tbn_compile.targets.mcu.boards.emulator import count_on_board, run_on_board
from tbn_compile.targets.mcu.boards.profile import find_board

SANITIZE = ("-fsanitize=undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """Paths of the quantised examples, by name."""
    folder = tmp_path_factory.mktemp("quantized")
    models = {
        f"{name}_{dtype}": quantized_example(name, dtype, per_channel=name == "cnn")[0]
        for name in ("mlp", "cnn")
        for dtype in ("int8", "uint8")
    }
    models["mlp_integers"] = without_first_quantize(models["mlp_uint8"])
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in models}


NAMES = ["mlp_int8", "mlp_uint8", "mlp_integers", "cnn_int8", "cnn_uint8"]


@pytest.mark.parametrize("optimization", ["ram", "balanced"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_onnx_runtime(quantized, name, optimization, tmp_path):
    program = compile_for(quantized[name], "c", optimization)
    (actual,), (expected,) = run_natively(program, tmp_path, *SANITIZE), program.sample.outputs
    np.testing.assert_array_equal(actual, expected)


def test_layers_are_integer_alone(quantized):
    text = compile_for(quantized["cnn_int8"], "cortex-m0plus").sources["default_lib1.c"]
    kernels = [part for part in text.split("KERNEL void ")[1:] if "{" in part.split(";")[0]]
    floating = {kernel.split("(")[0] for kernel in kernels if "float" in kernel}
    assert floating == {"tvmgen_default_dequantize"}


@pytest.mark.parametrize(
    ("name", "board"),
    [("mlp_int8", "microbit"), ("cnn_uint8", "mps2-an385"), ("mlp_uint8", "virt-rv32imc")],
)
def test_images_on_boards(quantized, name, board):
    model = onnx.load(quantized[name])
    images, _ = example_images(model)
    place = find_board(board)
    program = compile_for(quantized[name], place.core)
    results = run_on_board(program, place, [(image[None],) for image in images]).outputs
    actual = np.concatenate([outputs[0] for outputs in results])
    (expected,) = run_unoptimized(model, {"input": images})
    assert (actual.argmax(axis=1) == expected.argmax(axis=1)).all()
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ["residual", "series", "transformer"])
def test_integers_among_floats(models, name, tmp_path):
    """Tiled layers in integers between operators that ONNX Runtime computes in floats."""
    model = onnx.load(models[name])
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    samples = np.random.default_rng(0).standard_normal((8, *shape)).astype(np.float32)
    quantized = quantize(model, samples, "uint8", per_channel=True)
    onnx.save(quantized, tmp_path / "quantized.onnx")
    program = compile_for(tmp_path / "quantized.onnx", "cortex-m0plus")
    (actual,) = run_natively(program, tmp_path, *SANITIZE)
    feeds = {model.graph.input[0].name: program.sample.inputs[0]}
    (expected,) = run_unoptimized(quantized, feeds)
    # A library's last bit decides where a float lies in the middle of two integers.
    assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max()
    assert (actual == expected).mean() > 0.95


def test_a_core_without_fpu_needs_a_sixth_of_the_instructions(quantized):
    board = find_board("microbit")
    images, _ = example_images(onnx.load(quantized["mlp_int8"]))

    def instructions(path):
        program = compile_for(path, board.core)
        _, counts = count_on_board(program, board, [(image[None],) for image in images])
        return counts.total.instructions

    assert instructions(EXAMPLES / "mlp.onnx") > 6 * instructions(quantized["mlp_int8"])
