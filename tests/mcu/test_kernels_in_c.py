"""The C of every kernel: no warnings, and the same numbers as the host's machine code."""

import subprocess

import numpy as np
import pytest
from helpers.kernel_layers import every_candidate, tiled_layer
from runtime_models import Layer

from tbn_compile.targets.mcu.c_source import declaration, write_functions

FLAGS = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"]


def layer(shape, tile_length, scales=1, scale_length=10**6, offset=0, **attributes):
    rng = np.random.default_rng(tile_length)
    bits = rng.integers(0, 2, tile_length).astype(np.uint8)
    outputs = shape[0] if attributes.get("transB", 1) else shape[1]
    scale, bias = rng.normal(size=scales), rng.normal(size=outputs)
    return Layer(shape, bits, scale, scale_length, offset, 0, bias, attributes)


RELU = {"activation_min": 0.0}
CASES = {
    "rows": (layer((128, 100), 3200, 4, 3200, **RELU), (1, 100)),
    "columns": (layer((12, 96), 24), (2, 3, 96)),
    "stored as inputs by outputs": (layer((40, 12), 24, 20, 24, transB=0), (2, 40)),
    "scales inside rows": (layer((16, 8), 16, 32, 4), (2, 8)),
    "partial copies": (layer((10, 20), 60, offset=7), (1, 20)),
    "image": (layer((16, 1, 3, 3), 144, 16, 9, **RELU, pads=[1, 1, 1, 1]), (1, 1, 28, 28)),
    "channels": (layer((8, 45, 3, 3), 3240 // 2, pads=[1, 0, 1, 2], strides=[2, 1]), (2, 45, 9, 9)),
    "pointwise": (layer((8, 20, 1), 80), (1, 20, 30)),
    "depthwise": (layer((8, 1, 5), 10, dilations=[2], group=8, pads=[4, 4]), (1, 8, 30)),
    "volume": (layer((6, 4, 2, 2, 2), 96, group=2), (1, 8, 4, 5, 6)),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    functions = {}
    for number, (case, shape) in enumerate(CASES.values()):
        for index, candidate in enumerate(every_candidate(tiled_layer(case, shape))):
            functions[f"case{number}_{index}"] = candidate.build()[0]
    written = write_functions(functions, dict.fromkeys(functions, 1))
    lines = ["#include <stdint.h>", "#include <string.h>", "#include <math.h>"]
    for function in written:
        lines += [declaration(function), function.text]
    path = tmp_path_factory.mktemp("kernels") / "kernels.c"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-none-eabi-gcc"])
def test_compiles_without_a_warning(source, compiler):
    command = [compiler, *FLAGS, "-c", source, "-o", source.with_suffix(f".{compiler}.o")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
