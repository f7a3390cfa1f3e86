"""The C of every kernel: no warnings, and the same numbers as the host's machine code."""

import ctypes
import subprocess

import numpy as np
import pytest
from helpers.kernel_layers import every_candidate, garbage, kernels_source, tiled_layer
from runtime_models import Layer

FLAGS = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"]


def layer(shape, tile_length, scales=1, scale_length=10**6, offset=0, scale_offset=0, **attributes):
    rng = np.random.default_rng(tile_length)
    bits = rng.integers(0, 2, tile_length).astype(np.uint8)
    outputs = shape[0] if attributes.get("transB", 1) else shape[1]
    scale, bias = rng.normal(size=scales), rng.normal(size=outputs)
    return Layer(shape, bits, scale, scale_length, offset, scale_offset, bias, attributes)


RELU = {"activation_min": 0.0}
CASES = {
    "rows": (layer((128, 100), 3200, 4, 3200, **RELU), (1, 100)),
    "columns": (layer((12, 96), 24), (2, 3, 96)),
    "stored as inputs by outputs": (layer((40, 12), 24, 20, 24, transB=0), (2, 40)),
    "scales inside rows": (layer((16, 8), 16, 32, 4), (2, 8)),
    "scales from within a run": (layer((12, 8), 24, 4, 24, scale_offset=8), (1, 8)),
    "partial copies": (layer((10, 20), 60, offset=7), (1, 20)),
    "image": (layer((16, 1, 3, 3), 144, 16, 9, **RELU, pads=[1, 1, 1, 1]), (1, 1, 28, 28)),
    "image with strides": (
        layer((6, 3, 3, 3), 162, pads=[1, 1, 1, 1], strides=[2, 2]),
        (1, 3, 9, 9),
    ),
    "channels": (layer((8, 45, 3, 3), 3240 // 2, pads=[1, 0, 1, 2], strides=[1, 2]), (2, 45, 9, 9)),
    "pointwise": (layer((8, 20, 1), 80), (1, 20, 30)),
    "depthwise": (layer((8, 1, 5), 10, dilations=[2], group=8, pads=[4, 4]), (1, 8, 30)),
    "volume": (layer((6, 4, 2, 2, 2), 96, group=2), (1, 8, 4, 5, 6)),
}


@pytest.fixture(scope="module")
def built():
    """For each case, what `build` of every candidate gives."""
    return {
        name: [candidate.build() for candidate in every_candidate(tiled_layer(*case))]
        for name, case in CASES.items()
    }


@pytest.fixture(scope="module")
def written(built, tmp_path_factory):
    """The source of all kernels, and what is known of each C function by case."""
    functions = {
        f"kernel_{number}_{index}": function
        for number, kernels in enumerate(built.values())
        for index, (function, _) in enumerate(kernels)
    }
    source, described = kernels_source(functions)
    path = tmp_path_factory.mktemp("kernels") / "kernels.c"
    path.write_text(source)
    remaining = iter(described)
    return path, {name: [next(remaining) for _ in kernels] for name, kernels in built.items()}


@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-none-eabi-gcc"])
def test_compiles_without_a_warning(written, compiler):
    path, _ = written
    command = [compiler, *FLAGS, "-c", path, "-o", path.with_suffix(f".{compiler}.o")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture(scope="module")
def library(written):
    path, _ = written
    shared = path.with_suffix(".so")
    subprocess.run(["gcc", "-std=c99", "-O2", "-shared", "-fPIC", path, "-o", shared], check=True)
    return ctypes.CDLL(shared)


@pytest.mark.parametrize("name", CASES)
def test_computes_the_layer(built, written, library, name):
    case, shape = CASES[name]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    for (function, constants), described in zip(built[name], written[1][name], strict=True):
        y = garbage(function)
        workspace = [np.full(p.elements, 77, p.dtype) for p in described.workspace]
        arrays = [x, *constants, case.bias.astype(np.float32), y, *workspace]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        getattr(library, described.name)(*pointers)
        np.testing.assert_allclose(y, case.expected(x), rtol=1e-4, atol=1e-5)
