"""Programs built by `zig cc`, for users who can install nothing but pip's packages."""

import numpy as np
import pytest
from helpers.board_program import INPUTS, board_program

from tbn_compile import ModelError
from tbn_compile.targets.mcu.boards import toolchain
from tbn_compile.targets.mcu.boards.emulator import count_on_board, run_on_host
from tbn_compile.targets.mcu.boards.profile import find_board

pytestmark = pytest.mark.slow  # the compiler takes 400 MB


@pytest.fixture(autouse=True)
def no_other_compiler(monkeypatch):
    """Hide every compiler on the path."""
    monkeypatch.setattr(
        toolchain.shutil, "which", lambda name: f"/usr/bin/{name}" if "qemu" in name else None
    )


@pytest.mark.parametrize(
    "name", ["microbit", "mps2-an386", "mps3-an547", "virt-rv32imc", "virt-rv32imafc"]
)
def test_boards(name):
    board = find_board(name)
    body = "for (int32_t i = 0; i < 8; i++) { y[i] = tanhf(x[i]) + erff(x[i]) / 3.0f; }"
    run, counts = count_on_board(board_program(body, board.core), board, [(INPUTS,)])
    expected = run_on_host(board_program(body, "c"), [(INPUTS,)])
    np.testing.assert_allclose(run.outputs[0][0], expected[0][0], rtol=1e-6)
    assert counts.operators[1].instructions > counts.operators[0].instructions > 0


def test_a_model_that_is_too_large():
    program = board_program(
        "y[1] = (float)big[(int32_t)x[0]];", "cortex-m0plus", "static volatile int32_t big[4000];"
    )
    with pytest.raises(ModelError, match="microbit: needs 16,.*bytes of RAM, .* has 16,384"):
        count_on_board(program, find_board("microbit"), [(INPUTS,)])
