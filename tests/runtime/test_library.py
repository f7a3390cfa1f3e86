"""What the library exports and how much memory its kernels keep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toolchain import require_tools

MEGABYTE = 2**20

MEASURE = """
import os, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from runtime_models import Layer, make_model, make_session

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

rng = np.random.default_rng(0)

def session_of(size, tile_length):
    bits = rng.integers(0, 2, tile_length).astype(np.uint8)
    layer = Layer((size, size), bits, np.ones(1), 1)
    return make_session(make_model(layer, sys.argv[3]), sys.argv[1])

x = np.ones((1, 4096), np.float32)
session_of(64, 64 * 16).run(None, {"X": x[:, :64]})
before = resident()
session = session_of(4096, int(sys.argv[4]))
for _ in range(3):
    session.run(None, {"X": x})
print(resident() - before)
"""


def test_only_the_registration_function_is_exported(library: Path) -> None:
    require_tools("nm")
    done = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["RegisterCustomOps"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tile_length", [4096 * 1024, 4096 * 4096, 4096 * 1024 - 1])
def test_no_dense_weights_stay_in_memory(library: Path, dtype: str, tile_length: int) -> None:
    """4096 x 4096 weights are 64 MiB in float32 and 2 MiB as bits."""
    arguments = [str(library), str(Path(__file__).parent), dtype, str(tile_length)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 * MEGABYTE
