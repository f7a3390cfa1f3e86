"""The library on the releases of ONNX Runtime it promises to run on, one environment each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
RELEASES = {"1.17.3": "numpy<2", "1.20.1": "numpy", "1.24.4": "numpy", "1.32.0": "numpy"}


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_operators_on_release(release: str, library: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    python = environment / "bin/python"
    needs = [f"onnxruntime=={release}", RELEASES[release], "onnx", "hypothesis", "pytest"]
    tests = [FOLDER / "test_operators.py", FOLDER / "test_bad_layers.py"]
    options = ["-q", "-c", os.devnull, "--rootdir", FOLDER, "-p", "no:cacheprovider"]
    for command in (
        [sys.executable, "-m", "venv", environment],
        [python, "-m", "pip", "install", "--quiet", *needs, "ml_dtypes"],
        [python, "-m", "pytest", *options, *tests],
    ):
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"TBN_TEST_LIBRARY": str(library)},
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
