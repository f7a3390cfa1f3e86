"""CUDA source → machine code for named architectures, on a machine with or without a GPU.

By nvcc of the CUDA toolkit, or else by NVRTC and nvFatbin from PyPI. TVM would embed the source,
for the loader to compile, or code for one GPU; `machine_code` puts the fat binary in its place.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import tvm_ffi

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.targets.compiled.environment import environment

ARCHITECTURES = ("80", "86", "87", "89", "90", "100", "103", "110", "120", "121")
"""Compute capabilities that there can be machine code for; "90" includes Hopper's instructions."""
DEFAULT_ARCHITECTURES = ("80", "86", "89", "90")
_MISSING = (
    "no CUDA compiler; install the CUDA toolkit so that nvcc is on PATH, or "
    "`pip install tbn-compile[cuda]` for NVRTC"
)
# The driver's header is not for NVRTC; kernels only pass its 128-byte descriptor on.
_RTC_PRELUDE = "struct alignas(64) CUtensorMap { unsigned long long opaque[16]; };\n"
_POSTPROCESS, _COMPILE = "tvm_callback_cuda_postproc", "tvm_callback_cuda_compile"
# A CUDA module in a library: its kind, its length, and the format of the code that follows.
_LABEL = struct.pack("<Q", 4) + b"cuda"
_SOURCE_LABEL = re.compile(re.escape(_LABEL) + rb".{8}" + re.escape(_LABEL), re.DOTALL)
_BINARY_LABEL = struct.pack("<Q", 4) + b"fbin"


def check_architectures(architectures: Sequence[str]) -> tuple[str, ...]:
    """The architectures without repeats, lowest first.

    Raises:
        UsageError: if one is unknown or none is given; the text lists the valid ones.
    """
    unknown = [name for name in architectures if name not in ARCHITECTURES]
    if unknown or not architectures:
        what = (
            f"unknown CUDA architecture {clean(unknown[0], 20)!r}" if unknown else "no architecture"
        )
        raise UsageError(f"{what}; use some of {', '.join(ARCHITECTURES)}")
    return tuple(sorted(set(architectures), key=ARCHITECTURES.index))


def compile_fatbin(source: str, architectures: Sequence[str]) -> bytes:
    """Compile to machine code for each architecture, and PTX for devices newer than the highest.

    PTX is of the highest architecture without instructions of its own, so that any newer device
    runs it.

    Args:
        source: CUDA C++.
        architectures: of `ARCHITECTURES`.

    Returns:
        A fat binary.

    Raises:
        UsageError: if an architecture is unknown or there is no compiler.
        ModelError: if the source does not compile.
    """
    names = check_architectures(architectures)
    nvcc = _find_nvcc()
    if nvcc is not None:
        return _compile_with_nvcc(nvcc, source, names)
    libraries = _find_nvrtc()
    if libraries is None:
        raise UsageError(_MISSING)
    return _compile_with_nvrtc(libraries, source, names)


def compiler_name() -> str:
    """What `compile_fatbin` compiles with, and its version.

    Raises:
        UsageError: if there is no compiler.
    """
    nvcc = _find_nvcc()
    if nvcc is not None:  # by its full path
        told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
        release = re.search(r"release ([0-9.]+)", told.stdout)
        return f"nvcc {release[1] if release else 'of unknown version'}"
    if _find_nvrtc() is None:
        raise UsageError(_MISSING)
    return f"NVRTC {version('nvidia-cuda-nvrtc')}"


@contextmanager
def machine_code(architectures: Sequence[str]) -> Generator[Callable[[bytes], bytes]]:
    """While this is open, TVM's CUDA modules hold machine code instead of source.

    Args:
        architectures: of `ARCHITECTURES`.

    Yields:
        What a library that was exported meanwhile must go through: it marks its code as binary, so
        that TVM's runtime loads it without a compiler.

    Raises:
        UsageError: if an architecture is unknown or there is no compiler.
    """
    names = check_architectures(architectures)
    compiled: list[bytes] = []

    def compile_source(code: str, _target: Any) -> bytes:
        compiled.append(compile_fatbin(code, names))
        return compiled[-1]

    def label(library: bytes) -> bytes:
        for fatbin in compiled:
            if fatbin not in library:
                raise ModelError("the library lacks its CUDA machine code")
        return _SOURCE_LABEL.sub(lambda match: match[0][: -len(_LABEL)] + _BINARY_LABEL, library)

    previous = tvm_ffi.get_global_func(_POSTPROCESS, allow_missing=True)
    tvm_ffi.register_global_func(_POSTPROCESS, compile_source, override=True)
    try:
        # Where there is a GPU too: TVM would compile for it, and take the code for text.
        with environment("TVM_COMPILE_FORCE_FALLBACK", "1"):
            yield label
    finally:
        if previous is None:
            tvm_ffi.remove_global_func(_POSTPROCESS)
        else:
            tvm_ffi.register_global_func(_POSTPROCESS, previous, override=True)


def compile_for(architectures: Sequence[str]) -> None:
    """Have TVM, where it compiles CUDA source for a GPU, compile as an artifact's is.

    TVM's own way takes code for its target's very architecture, and a package that we do not need.

    Args:
        architectures: of `ARCHITECTURES`.
    """
    names = check_architectures(architectures)
    tvm_ffi.register_global_func(_COMPILE, lambda code: compile_fatbin(code, names), override=True)


class _Nvrtc(NamedTuple):
    nvrtc: Path
    nvfatbin: Path
    includes: tuple[Path, ...]


def _find_nvcc() -> str | None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        root = os.environ.get(variable)
        found = shutil.which("nvcc", path=str(Path(root) / "bin")) if root else None
        if found:
            return found
    return shutil.which("nvcc")


def _find_nvrtc() -> _Nvrtc | None:
    spec = importlib.util.find_spec("nvidia")
    for folder in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
        for root in sorted(folder.glob("cu[0-9]*"), reverse=True):
            nvrtc, nvfatbin = (
                next(iter(sorted(root.glob(f"lib/{name}.so.*"))), None)
                for name in ("libnvrtc", "libnvfatbin")
            )
            if nvrtc and nvfatbin:
                return _Nvrtc(nvrtc, nvfatbin, (root / "include", root / "include" / "cccl"))
    return None


def _compile_with_nvcc(nvcc: str, source: str, names: tuple[str, ...]) -> bytes:
    machines = map(_machine, names)
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in machines]
    targets.append(f"-gencode=arch=compute_{names[-1]},code=compute_{names[-1]}")
    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        text.write_text(source, encoding="utf-8")
        flags = ["-fatbin", "-O3", "-std=c++17", "--threads=0", *targets]
        command = [nvcc, *flags, str(text), "-o", str(binary)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if finished.returncode:
            raise _failure("nvcc", finished.stderr + finished.stdout)
        return binary.read_bytes()


def _compile_with_nvrtc(found: _Nvrtc, source: str, names: tuple[str, ...]) -> bytes:
    # NVRTC opens its built-ins by name alone, so they are opened first.
    for builtins in found.nvrtc.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    nvrtc, nvfatbin = ctypes.CDLL(str(found.nvrtc)), ctypes.CDLL(str(found.nvfatbin))
    handle = ctypes.c_void_p()
    options = (ctypes.c_char_p * 1)(b"-64")
    _check("nvFatbinCreate", nvfatbin.nvFatbinCreate(ctypes.byref(handle), options, 1))
    try:
        for name in map(_machine, names):
            cubin = _run_nvrtc(nvrtc, found, source, f"sm_{name}", "CUBIN")
            arguments = (handle, cubin, ctypes.c_size_t(len(cubin)), name.encode(), b"kernels")
            _check("nvFatbinAddCubin", nvfatbin.nvFatbinAddCubin(*arguments))
        ptx = _run_nvrtc(nvrtc, found, source, f"compute_{names[-1]}", "PTX")
        arguments = (handle, ptx, ctypes.c_size_t(len(ptx)), names[-1].encode(), b"kernels")
        _check("nvFatbinAddPTX", nvfatbin.nvFatbinAddPTX(*arguments, None))
        size = ctypes.c_size_t()
        _check("nvFatbinSize", nvfatbin.nvFatbinSize(handle, ctypes.byref(size)))
        content = ctypes.create_string_buffer(size.value)
        _check("nvFatbinGet", nvfatbin.nvFatbinGet(handle, content))
        return content.raw
    finally:
        nvfatbin.nvFatbinDestroy(ctypes.byref(handle))


def _machine(name: str) -> str:
    """The architecture with the instructions that only its own devices have."""
    return "90a" if name == "90" else name


def _run_nvrtc(nvrtc: Any, found: _Nvrtc, source: str, architecture: str, kind: str) -> bytes:
    program = ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), (_RTC_PRELUDE + source).encode(), b"kernels.cu", 0, None, None
    )
    _check("nvrtcCreateProgram", created)
    flags = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        "--device-as-default-execution-space",
        *(f"--include-path={folder}" for folder in found.includes),
    ]
    options = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    try:
        if nvrtc.nvrtcCompileProgram(program, len(flags), options):
            raise _failure("NVRTC", _fetch(nvrtc, program, "ProgramLog").decode(errors="replace"))
        return _fetch(nvrtc, program, kind)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(nvrtc: Any, program: Any, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(
        f"nvrtcGet{what}Size", getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    )
    content = ctypes.create_string_buffer(size.value)
    _check(f"nvrtcGet{what}", getattr(nvrtc, f"nvrtcGet{what}")(program, content))
    return content.raw


def _check(function: str, status: int) -> None:
    if status:
        raise ModelError(f"{function} failed with status {status}; reinstall tbn-compile[cuda]")


def _failure(compiler: str, log: str) -> ModelError:
    lines = [line for line in log.splitlines() if "error" in line.lower()] or [log.strip()]
    return ModelError(f"{compiler} cannot compile the kernels: {clean(lines[0], 300)}")
