"""Builds the native code into temporary folders; a missing tool fails in CI and skips elsewhere."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helper modules of this folder

from toolchain import Build, require_tools

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """See `toolchain.Build`."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def run(name: str, *options: str) -> Path:
        require_tools("cmake", "make", "c++")
        folder = root / f"native-{name}"
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            configure = ["cmake", "-S", REPOSITORY / "runtime", "-B", folder]
            configure += ["-DTBN_WARNINGS_AS_ERRORS=ON", "-DTBN_BUILD_TESTS=ON", *options]
            for command in (configure, ["cmake", "--build", folder, "--parallel", "2"]):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return run


@pytest.fixture(scope="session")
def library(build: Build) -> Path:
    """The custom-operator library; TBN_TEST_LIBRARY names one that is already built."""
    ready_made = os.environ.get("TBN_TEST_LIBRARY")
    return Path(ready_made) if ready_made else build("release") / "ort/libtbn_ort.so"


@pytest.fixture(scope="session")
def sanitized(build: Build) -> Path:
    """The build folder with the address and undefined-behaviour sanitizers."""
    return build("sanitized", "-DTBN_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
