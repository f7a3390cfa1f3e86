"""Compile trained networks and measure the artifacts on the test samples, as in PyTorch.

    python examples/training/measure.py runs/resnet18/*/seed0 --target llvm
    python examples/training/measure.py runs/mlp/p4/seed0 --target mps2-an386 --samples 1000

Each figure goes to artifacts.json in the run's folder.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import onnxruntime
import torch
import typer
from datasets import DATASETS
from datasets.data import Data, Samples
from logged import Artifact, LogError, Needs, Summary, read_json, write_json
from recipe import Recipe, RecipeError, find, load_recipe
from task import score
from torch import Tensor

from tbn_compile import (
    CompileOptions,
    TbnError,
    UsageError,
    compile_model,
    get_library_path,
    load,
)
from tbn_compile.targets.mcu.archive.archive import read_program
from tbn_compile.targets.mcu.boards.emulator import count_on_board, run_on_board, run_on_host
from tbn_compile.targets.mcu.boards.profile import board_names, find_board

Predict = Callable[[Tensor], Tensor]
"""Outputs, on the CPU, of a batch of prepared inputs."""

ONE_SAMPLE = {"batch": 1}
TIMEOUT = 600.0
"""Seconds that a batch of samples may take in C or on an emulated board."""


class Compiled(NamedTuple):
    """A compiled network.

    Attributes:
        predict: runs it.
        artifact_bytes: of what the compiler wrote.
        board: what it takes on a board; None elsewhere.
    """

    predict: Predict
    artifact_bytes: int
    board: Needs | None = None


def compile_for_onnx_runtime(model: Path, target: str, folder: Path) -> Compiled:
    """An ONNX file, run with the custom operators."""
    output = folder / "model.tbn.onnx"
    report = compile_model(model, target, output)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    predict = run_in_onnx_runtime(output, options)
    return Compiled(predict, report.artifact_bytes or 0)


def run_in_onnx_runtime(model: Path, options: onnxruntime.SessionOptions | None = None) -> Predict:
    """ONNX Runtime on an ONNX file; without options, as it comes."""
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


def compile_library(model: Path, target: str, folder: Path) -> Compiled:
    """A shared library for this machine's CPU or GPU."""
    output = folder / "model.so"
    report = compile_model(model, target, output)
    compiled = load(output)
    return Compiled(
        lambda inputs: torch.tensor(compiled(inputs.contiguous().numpy())),
        report.artifact_bytes or 0,
    )


def compile_portable_c(model: Path, target: str, folder: Path) -> Compiled:
    """C for microcontrollers, built for this machine."""
    output = folder / "model.tar"
    report = compile_model(model, target, output, CompileOptions(ONE_SAMPLE))
    program = read_program(output)
    return Compiled(
        lambda inputs: _outputs(run_on_host(program, _one_by_one(inputs), timeout=TIMEOUT)),
        report.artifact_bytes or 0,
    )


def compile_for_board(model: Path, name: str, folder: Path) -> Compiled:
    """C for a microcontroller, run on the emulated board of that name."""
    board, output = find_board(name), folder / "model.tar"
    report = compile_model(model, board.core, output, CompileOptions(ONE_SAMPLE, board=name))
    program = read_program(output)
    run, counts = count_on_board(program, board, [program.sample.inputs])
    return Compiled(
        lambda inputs: _outputs(
            run_on_board(program, board, _one_by_one(inputs), timeout=TIMEOUT).outputs
        ),
        report.artifact_bytes or 0,
        Needs(
            flash_bytes=run.image.sections.flash,
            ram_bytes=run.image.sections.ram,
            stack_bytes=run.stack_bytes,
            instructions=counts.total.instructions,
        ),
    )


def _one_by_one(inputs: Tensor) -> list[tuple[np.ndarray]]:
    return [(sample.numpy(),) for sample in inputs.split(1)]


def _outputs(results: tuple[tuple[np.ndarray, ...], ...]) -> Tensor:
    return torch.from_numpy(np.concatenate([output for (output,) in results]))


COMPILERS: dict[str, Callable[[Path, str, Path], Compiled]] = {
    "ort": compile_for_onnx_runtime,
    "llvm": compile_library,
    "cuda": compile_library,
    "c": compile_portable_c,
    **dict.fromkeys(board_names(), compile_for_board),
}


@cache
def load_data(name: str) -> Data:
    """A data set, once for all runs."""
    return find(DATASETS, name)()


def measure(run: Path, target: str, samples: int | None = None) -> Artifact:
    """Compile the network of a run and score the artifact.

    Args:
        run: folder that `train.py` wrote.
        target: a key of `COMPILERS`.
        samples: how many of the test samples, from the first; None: all.

    Returns:
        What artifacts.json says; expected metrics are those in PyTorch or, for a part of the
        samples, of the run's ONNX file in stock ONNX Runtime.

    Raises:
        TbnError: the run is not complete, or its network does not compile, fit or run.
        LogError: the run's summary is broken.
        RecipeError: the run's recipe is not there.
        FileNotFoundError: its data are not installed.
    """
    recipe, expected = _read_summary(run)
    data, model = load_data(recipe.dataset), _find_model(run)
    if samples is not None:
        data = replace(data, test=Samples(*(part[:samples] for part in data.test)))
        expected = score(run_in_onnx_runtime(model), recipe, data)
    with tempfile.TemporaryDirectory() as folder:
        compiled = COMPILERS[target](model, target, Path(folder))
        metrics = score(compiled.predict, recipe, data)
    return Artifact(
        metrics=metrics,
        expected=expected,
        samples=len(data.test.inputs),
        artifact_bytes=compiled.artifact_bytes,
        board=compiled.board,
    )


def _read_summary(run: Path) -> tuple[Recipe, dict[str, float]]:
    path = run / "summary.json"
    if not path.exists():
        raise UsageError(f"no summary.json in {run}; let train.py finish the run")
    summary = read_json(path, Summary)
    return load_recipe(summary.recipe), summary.metrics


def _find_model(run: Path) -> Path:
    """The dense network of a run or, where only small files are kept, the compiled one."""
    for name in ("model.onnx", "model.tbn.onnx"):
        if (run / name).exists():
            return run / name
    raise UsageError(f"neither model.onnx nor model.tbn.onnx in {run}; let train.py finish the run")


def write(run: Path, target: str, artifact: Artifact) -> None:
    """Add an artifact to the run's artifacts.json, or replace the target's.

    Raises:
        LogError: the file is broken.
    """
    path = run / "artifacts.json"
    known = read_json(path, dict[str, Any]) if path.exists() else {}
    write_json(path, {**known, target: artifact.model_dump()})


def describe(artifact: Artifact) -> str:
    """A line for the terminal."""
    metrics = ", ".join(
        f"{name} {value:.4f} ({value - artifact.expected[name]:+.4f} by compiling)"
        for name, value in artifact.metrics.items()
    )
    return f"{metrics}; {artifact.samples:,} samples; {artifact.artifact_bytes:,} bytes"


def main(
    runs: Annotated[list[Path], typer.Argument(help="folders that train.py wrote")],
    target: Annotated[str, typer.Option(help=f"one of: {', '.join(COMPILERS)}")],
    samples: Annotated[int | None, typer.Option(min=1, help="only the first of the test")] = None,
) -> None:
    """Compile the networks of RUNS for a target or board and measure them there."""
    if target not in COMPILERS:
        raise typer.BadParameter(f"no target or board {target!r}; see --help")
    failed = False
    for run in runs:
        try:
            artifact = measure(run, target, samples)
            write(run, target, artifact)
        except (TbnError, LogError, RecipeError, FileNotFoundError) as error:
            print(f"{run}: {target}: {error}", file=sys.stderr)
            failed = True
        else:
            print(f"{run}: {target}: {describe(artifact)}")
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
