"""The cost model against instructions counted in the emulator."""

import numpy as np
import pytest
from helpers.kernel_layers import counting_program, every_candidate, tiled_layer
from runtime_models import Layer

from tbn_compile.targets.mcu.boards.emulator import count_on_board
from tbn_compile.targets.mcu.boards.profile import find_board


def layer(shape, tile_length, **attributes):
    rng = np.random.default_rng(tile_length)
    bits = rng.integers(0, 2, tile_length).astype(np.uint8)
    bias = rng.normal(size=shape[0])
    attributes = {"activation_min": 0.0, **attributes}
    return Layer(shape, bits, np.array([0.5]), 10**9, 0, 0, bias, attributes)


CASES = {
    "few distinct rows": (layer((32, 64), 128), (1, 64)),
    "many distinct rows": (layer((64, 128), 64 * 128), (1, 128)),
    "one channel": (layer((16, 1, 3, 3), 144, pads=[1, 1, 1, 1]), (1, 1, 10, 10)),
    "many channels": (layer((16, 16, 3, 3), 576, pads=[1, 1, 1, 1]), (1, 16, 6, 6)),
    "strides": (layer((16, 16, 3, 3), 576, strides=[2, 2]), (1, 16, 7, 7)),
    "depthwise": (layer((8, 1, 3, 3), 36, group=8, pads=[1, 1, 1, 1]), (1, 8, 6, 6)),
}
BOARDS = {"cortex-m4": "mps2-an386", "cortex-m0plus": "microbit"}


@pytest.mark.parametrize("core", BOARDS)
@pytest.mark.parametrize("name", CASES)
def test_ranks_kernels_as_the_emulator_does(name, core):
    case, shape = CASES[name]
    every = every_candidate(tiled_layer(case, shape), core)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    program = counting_program(every, x, case.bias.astype(np.float32), core)
    _, counts = count_on_board(program, find_board(BOARDS[core]), [(x,)])
    counted = [operator.instructions for operator in counts.operators]
    estimated = [candidate.instructions for candidate in every]
    assert counted[np.argmin(estimated)] <= 1.1 * min(counted)
    assert np.allclose(estimated, counted, rtol=0.5), list(zip(estimated, counted, strict=True))
