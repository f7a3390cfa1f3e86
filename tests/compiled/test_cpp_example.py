"""The C++ example: it builds, and gives what Python gives."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tbn_compile import load

SOURCES = Path(__file__).parents[2] / "examples" / "cpp_runtime"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    for command in (
        ["cmake", "-S", str(SOURCES), "-B", str(folder), python, "-DCMAKE_CXX_FLAGS=-Wall -Werror"],
        ["cmake", "--build", str(folder)],
    ):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def test_it_gives_what_python_gives(program, example):
    x = np.random.default_rng(0).standard_normal((3, 784)).astype(np.float32)
    done = subprocess.run(
        [program, example.artifact, "3", "784"], input=x.tobytes(), check=True, capture_output=True
    )
    result = np.frombuffer(done.stdout, np.float32).reshape(3, 10)
    np.testing.assert_array_equal(result, load(example.artifact)(x))


@pytest.mark.parametrize(
    ("name", "runtime"), [("run", "libtvm_runtime.so"), ("run_cuda", "libtvm_runtime_cuda.so")]
)
def test_it_needs_neither_python_nor_a_compiler(program, name, runtime):
    command = ["ldd", program.with_name(name)]
    needed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert runtime in needed
    assert "libtvm_compiler" not in needed
    assert "python3" not in needed.split("=>")[0]


def test_input_that_is_too_short_fails(program, example):
    done = subprocess.run([program, example.artifact, "1", "784"], input=b"", check=False)
    assert done.returncode == 1
