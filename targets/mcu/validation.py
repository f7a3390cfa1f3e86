"""Compare an archive, run on an emulated board or on this machine, with its original model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tbn_compile.pipeline import ProgressCallback
from tbn_compile.sessions import Arrays, check_model
from tbn_compile.targets.mcu.archive.archive import read_program
from tbn_compile.targets.mcu.boards.emulator import run_on_board, run_on_host
from tbn_compile.targets.mcu.boards.profile import Board, find_board
from tbn_compile.targets.mcu.program import Program, Tensor
from tbn_compile.validation import (
    TOLERANCES,
    ValidationReport,
    check_options,
    compare_outputs,
    reference_runs,
    report_step,
)

_FLOAT32_TOLERANCE = 1e-5


def validate_archive(
    model: str | Path,
    archive: str | Path,
    board: str | None = None,
    *,
    inputs: str | Path | None = None,
    seed: int = 0,
    input_sets: int = 3,
    tolerance: float | None = None,
    input_dims: Mapping[str, int] | None = None,
    progress: ProgressCallback | None = None,
) -> ValidationReport:
    """Build an archive's program, run it, and compare every output with ONNX Runtime's.

    The program's code runs with this user's rights, also on an emulated board (see `run_on_board`).

    Args:
        model: the original `.onnx` file.
        archive: what a microcontroller target made of it.
        board: the board to emulate, see `find_board`; None runs portable code on this machine.
        inputs: an `.npz` file with a value per input, in place of random ones.
        seed: of the first random set of inputs; the next ones count up.
        input_sets: how many random sets.
        tolerance: greatest error relative to the largest magnitude, for every output; by default
            1e-5 for float32, one step for dequantised integers, and 0 for integers.
        input_dims: extents for symbolic dimensions; by default those of the archive.
        progress: called as steps are done, or None.

    Raises:
        ModelError: if a file is unsafe or invalid, or the program has other inputs or outputs than
            the model, does not compile, does not fit the board, or fails there.
        UsageError: if an option does not fit, or a compiler or the emulator is missing.
    """
    check_options(input_sets, tolerance)
    place = None if board is None else find_board(board)
    original, program = check_model(model), read_program(Path(archive))
    shapes = {tensor.name: tensor.shape for tensor in program.inputs}
    names = [tensor.name for tensor in program.outputs]
    options = (inputs, seed, input_sets, input_dims)
    sets, references = reference_runs(original, Path(archive).name, shapes, names, *options)
    report_step(progress, 1, 2)
    results = _run(program, place, sets)
    report_step(progress, 2, 2)
    outputs = [
        comparison
        for tensor in program.outputs
        for comparison in compare_outputs(
            [{tensor.name: arrays[tensor.name]} for arrays in references],
            [{tensor.name: arrays[tensor.name]} for arrays in results],
            f"board {place.name}" if place else "host",
            partial(_allowed, tensor, references, tolerance),
        )
    ]
    return ValidationReport(
        model=original.path.name,
        artifact=Path(archive).name,
        outputs=tuple(outputs),
        input_sets=len(sets),
        seed=seed if inputs is None else None,
    )


def _run(program: Program, board: Board | None, sets: Sequence[Arrays]) -> list[Arrays]:
    values = [tuple(feeds[tensor.name] for tensor in program.inputs) for feeds in sets]
    results = (
        run_on_host(program, values)
        if board is None
        else run_on_board(program, board, values).outputs
    )
    names = [tensor.name for tensor in program.outputs]
    return [dict(zip(names, arrays, strict=True)) for arrays in results]


def _allowed(
    tensor: Tensor, references: Sequence[Arrays], tolerance: float | None, _dtype: str
) -> float:
    """The error that an output may have; where it stands for integers, a step of theirs."""
    if tolerance is not None:
        return tolerance
    if tensor.dtype != "float32":
        return TOLERANCES.get(tensor.dtype, 0.0)
    largest = max(float(np.abs(arrays[tensor.name]).max(initial=0)) for arrays in references)
    step = 1.001 * tensor.step / largest if np.isfinite(largest) and largest else 0.0
    return max(_FLOAT32_TOLERANCE, step)
