"""Compile models to C programs and run them on the host."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from tbn_compile.pipeline import Pipeline
from tbn_compile.targets.mcu.compiler.compilation import compile_program
from tbn_compile.targets.mcu.compiler.sample import make_sample
from tbn_compile.targets.mcu.cores import CORES
from tbn_compile.targets.mcu.program import Program

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic", "-O2")


def compile_for(path: Path, core: str, optimization="balanced", dims=None) -> Program:
    """The C program of a model, batch pinned to 1 where it is dynamic."""
    dims = {"batch": 1} if dims is None else dims
    graph = Pipeline(path).run(dims)
    sample = make_sample(path, graph, dims)
    return compile_program(graph, CORES[core], optimization, sample, path.stem)


def write_sources(program: Program, folder: Path) -> list[Path]:
    """The program's files in a folder; gives those to compile."""
    for name, text in program.sources.items():
        (folder / name).write_text(text, encoding="ascii")
    return sorted(folder.glob("*.c"))


def run_natively(program: Program, folder: Path, *flags: str) -> list[np.ndarray]:
    """The outputs for the program's sample, computed by the host's compiler and processor."""
    sources = write_sources(program, folder)
    library = folder / "model.so"
    subprocess.run(
        ["gcc", *STRICT, *flags, "-shared", "-fPIC", *map(str, sources), "-lm", "-o", str(library)],
        check=True,
    )
    outputs = [np.full_like(array, 77) for array in program.sample.outputs]
    arrays = [np.array(array) for array in program.sample.inputs] + outputs
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    entry = ctypes.CDLL(str(library)).tvmgen_default___tvm_main__
    assert entry(*pointers) == 0
    assert entry(*pointers) == 0  # nothing is left from the run before
    return outputs


def largest_error(results, references) -> float:
    """The largest error as a share of the references' largest magnitude."""
    return max(
        float(np.abs(result.astype(np.float64) - reference).max() / np.abs(reference).max())
        for result, reference in zip(results, references, strict=True)
    )
