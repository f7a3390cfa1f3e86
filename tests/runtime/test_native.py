"""The native test program and the Python tests of bad input, plain, sanitized and on aarch64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toolchain import Build, require_tools

SYSROOT = "/usr/aarch64-linux-gnu"


def run(command: list[str | Path], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | (environment or {})
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_kernels_match_the_reference(build: Build) -> None:
    out = run([build("release") / "tests/runtime/tbn_native_test", "1000"])
    assert "tested portable" in out


def test_kernels_match_the_reference_under_sanitizers(sanitized: Path) -> None:
    out = run([sanitized / "tests/runtime/tbn_native_test", "300"])
    assert "tested portable" in out


def test_kernels_match_the_reference_with_clang(build: Build) -> None:
    require_tools("clang++")
    folder = build("clang", "-DCMAKE_CXX_COMPILER=clang++")
    assert "tested portable" in run([folder / "tests/runtime/tbn_native_test", "300"])


def test_kernels_match_the_reference_on_aarch64(build: Build) -> None:
    require_tools("aarch64-linux-gnu-g++", "qemu-aarch64")
    folder = build(
        "aarch64",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    )
    program = folder / "tests/runtime/tbn_native_test"
    out = run(["qemu-aarch64", "-L", SYSROOT, program, "150"])
    assert "tested neon" in out


@pytest.mark.skipif("TBN_TEST_LIBRARY" in os.environ, reason="this is the inner run")
def test_bad_layers_under_sanitizers(sanitized: Path) -> None:
    # The C++ runtime comes along, as the sanitizer looks up its exceptions when it starts.
    preloads = ["libasan.so", "libstdc++.so.6"]
    paths = [run(["c++", f"-print-file-name={name}"]).strip() for name in preloads]
    environment = {
        "TBN_TEST_LIBRARY": str(sanitized / "ort/libtbn_ort.so"),
        "LD_PRELOAD": " ".join(paths),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    }
    tests = [Path(__file__).parent / name for name in ("test_bad_layers.py", "test_operators.py")]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]
    # The sanitizer ends the process where operator new would throw.
    options += ["-k", "not memory_that_cannot_be_had"]
    out = run([sys.executable, "-m", "pytest", *options, *tests], environment)
    assert " passed" in out
