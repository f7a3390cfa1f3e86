"""Instructions, flash and RAM of tiled programs on emulated boards, beside dense and packed ones.

Run `python benchmarks/mcu_instructions.py`. QEMU counts; the figures are the same in every run.
Each program is compiled with -O2 by the board's own compiler and its outputs are compared with
ONNX Runtime's. Published for the same MLP on the same board: onnx2c 510 320 instructions, TFLite
Micro 511 937, CMSIS-NN (int8) 197 768.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from tbn_compile import CompileOptions, compile_model
from tbn_compile.targets.mcu.archive.archive import read_program
from tbn_compile.targets.mcu.boards.emulator import count_on_board
from tbn_compile.targets.mcu.boards.profile import Board, find_board
from tbn_compile.targets.mcu.compiler.c_constants import constant_definition
from tbn_compile.targets.mcu.compiler.dense import compile_dense_program
from tbn_compile.targets.mcu.cores import CORES
from tbn_compile.targets.mcu.program import Program
from tbn_compile.tile import pack_bits

EXAMPLES = Path(__file__).parents[1] / "examples" / "fashion_mnist"
PACKED = Path(__file__).parent / "mcu" / "packed_binary.c"


def tiled(model: Path, core: str, optimize: str = "balanced") -> Program:
    """What tbn-compile makes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "model.tar"
        options = CompileOptions(input_dims={"batch": 1}, optimize=optimize)
        compile_model(model, core, archive, options)
        return read_program(archive)


def dense(model: Path, core: str) -> Program:
    """The same network with dense float weights, by the same compiler."""
    return compile_dense_program(model, CORES[core], "balanced", {"batch": 1})


def packed(model: Path, program: Program) -> Program:
    """The MLP as packed binary weights without reuse, with the interface of `program`."""
    arrays = [
        onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(model)).graph.initializer
    ]
    weights = [array for array in arrays if array.ndim == 2]
    biases = [array for array in arrays if array.ndim == 1]
    constants: dict[str, np.ndarray] = {}
    for layer, (weight, quarter) in enumerate(zip(weights, (32, 10), strict=True), start=1):
        constants[f"BITS_{layer}"] = pack_bits(weight.reshape(-1) > 0)
        constants[f"SCALES_{layer}"] = np.abs(weight[::quarter, 0]).astype(np.float32)
        constants[f"BIAS_{layer}"] = next(b for b in biases if b.size == weight.shape[0])
    header = "\n".join(constant_definition(name, array) for name, array in constants.items())
    text = PACKED.read_text().replace('#include "weights.h"', header)
    return dataclasses.replace(
        program,
        sources=dict(program.sources) | {"default_lib1.c": text},
        operators=(),
    )


def row(table: Table, name: str, program: Program, board: Board) -> int:
    """Run a program, add its figures and give its instructions."""
    run, counts = count_on_board(program, board, [program.sample.inputs])
    error = max(
        float(np.abs(result.astype(np.float64) - reference).max() / np.abs(reference).max())
        for result, reference in zip(run.outputs[0], program.sample.outputs, strict=True)
    )
    sections, total = run.image.sections, counts.total
    table.add_row(
        name,
        f"{total.instructions:,}",
        f"{total.loads:,}",
        f"{total.stores:,}",
        f"{sections.text:,}",
        f"{sections.flash:,}",
        f"{sections.data + sections.bss:,}",
        f"{run.stack_bytes:,}",
        f"{error:.1e}",
    )
    return total.instructions


def new_table(title: str) -> Table:
    """A table of programs."""
    columns = (
        "Program", "Instructions", "Loads", "Stores", "Code, B", "Flash, B",
        "RAM beside in- and outputs, B", "Stack, B", "Error of largest",
    )  # fmt: skip
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == "Program" else "right")
    return table


def main() -> None:
    console = Console(width=160)
    board = find_board("mps2-an386")
    mlp, cnn = EXAMPLES / "mlp.onnx", EXAMPLES / "cnn.onnx"

    table = new_table("MLP 784-128-10, p = 4 in the first layer, Cortex-M4F (mps2-an386)")
    program = tiled(mlp, "cortex-m4")
    ours = row(table, "tiled, -O balanced", program, board)
    for optimize in ("ram", "time"):
        row(table, f"tiled, -O {optimize}", tiled(mlp, "cortex-m4", optimize), board)
    binary = row(table, "packed binary, no reuse", packed(mlp, program), board)
    full = row(table, "dense float", dense(mlp, "cortex-m4"), board)
    console.print(table)
    console.print(
        f"Weights and scales {program.weight_bytes:,} B. Fewer instructions: "
        f"{binary / ours:.1f} x than packed binary, {full / ours:.1f} x than dense\n"
    )

    table = new_table("CNN of examples/, Cortex-M4F (mps2-an386)")
    ours = row(table, "tiled, -O balanced", tiled(cnn, "cortex-m4"), board)
    for optimize in ("ram", "time"):
        row(table, f"tiled, -O {optimize}", tiled(cnn, "cortex-m4", optimize), board)
    full = row(table, "dense float", dense(cnn, "cortex-m4"), board)
    console.print(table)
    console.print(f"{full / ours:.1f} x fewer instructions than dense\n")

    with tempfile.TemporaryDirectory() as folder:
        without_fpu(console, Path(folder))


def without_fpu(console: Console, folder: Path) -> None:
    """Tables of float against int8 activations on cores without an FPU."""
    core = "cortex-m0plus"
    for name, board in (("mlp", "microbit"), ("cnn", "mps2-an385")):
        model, integers = EXAMPLES / f"{name}.onnx", folder / f"{name}.int8.onnx"
        command = (sys.executable, EXAMPLES / "quantize.py", model, integers)
        subprocess.run(command, check=True, capture_output=True)
        table = new_table(f"{name}.onnx, {core}")
        floats = row(table, f"float32, {board}", tiled(model, core), find_board(board))
        program = tiled(integers, core)
        ours = row(table, f"int8, {board}", program, find_board(board))
        if board != "microbit":
            row(table, "int8, microbit", program, find_board("microbit"))
        console.print(table)
        console.print(f"{floats / ours:.1f} x fewer instructions with int8\n")


if __name__ == "__main__":
    main()
