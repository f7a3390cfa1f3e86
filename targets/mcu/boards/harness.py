"""The main program that runs a model on sets of inputs, and the files that it reads and writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tbn_compile.errors import ModelError, clean
from tbn_compile.targets.mcu.boards.profile import runtime_file
from tbn_compile.targets.mcu.program import Program, Tensor

Arrays: TypeAlias = tuple[npt.NDArray[Any], ...]
"""A value for each tensor, in the program's order."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")


def harness_sources(program: Program) -> dict[str, str]:
    """C files, by name, of the main program."""
    return {
        "harness_main.c": runtime_file("harness.c"),
        "harness_tensors.c": _tensors_source(program),
        "harness.h": runtime_file("harness.h"),
    }


def input_bytes(program: Program, input_sets: Sequence[Arrays]) -> bytes:
    """What the main program reads.

    Raises:
        ModelError: if a value's shape or type is not that of its input.
    """
    parts = [np.uint32(len(input_sets)).astype("<u4").tobytes()]
    for values in input_sets:
        for tensor, value in zip(program.inputs, values, strict=True):
            if (value.shape, value.dtype) != (tensor.shape, np.dtype(tensor.dtype)):
                raise ModelError(
                    f"input {clean(tensor.name, 40)!r} is {tensor.dtype}{list(tensor.shape)}, "
                    f"not {value.dtype}{list(value.shape)}"
                )
            parts.append(np.ascontiguousarray(value).tobytes())
    return b"".join(parts)


def read_results(program: Program, content: bytes, sets: int) -> tuple[tuple[Arrays, ...], int]:
    """What the main program has written: each set's outputs, and the peak of the stack in bytes.

    Raises:
        ModelError: if it has another length, as after a run that was cut short.
    """
    size = sets * sum(tensor.nbytes for tensor in program.outputs)
    if len(content) != size + 4:
        raise ModelError(f"the program wrote {len(content)} bytes of results, not {size + 4}")
    arrays = _arrays(program, content)
    outputs = tuple(tuple(next(arrays) for _ in program.outputs) for _ in range(sets))
    return outputs, int(np.frombuffer(content, "<u4", 1, size)[0])


def _arrays(program: Program, content: bytes) -> Iterator[npt.NDArray[Any]]:
    offset = 0
    while True:
        for tensor in program.outputs:
            dtype = np.dtype(tensor.dtype)
            count = tensor.nbytes // dtype.itemsize
            yield np.frombuffer(content, dtype, count, offset).reshape(tensor.shape)
            offset += tensor.nbytes


def _tensors_source(program: Program) -> str:
    for tensor in (*program.inputs, *program.outputs):
        if not _IDENTIFIER.fullmatch(tensor.identifier):
            raise ModelError(f"{clean(tensor.identifier, 40)!r} is no C identifier")
    kinds = (("input", program.inputs), ("output", program.outputs))
    return "\n".join(
        [
            '#include "harness.h"',
            '#include "tvmgen_default.h"',
            "",
            *(line for kind, tensors in kinds for line in _storage(kind, tensors)),
            "int32_t tbn_run_model(void) {",
            *(line for kind, tensors in kinds for line in _pointers(kind, tensors)),
            "  return tvmgen_default_run(&inputs, &outputs);",
            "}",
            "",
        ]
    )


def _storage(kind: str, tensors: Sequence[Tensor]) -> Iterator[str]:
    """An array for each tensor, and the list of them."""
    for index, tensor in enumerate(tensors):
        yield f"static uint64_t {kind}_{index}[{max(1, -(-tensor.nbytes // 8))}];"
    yield f"const tbn_tensor_t tbn_{kind}s[] = {{"
    for index, tensor in enumerate(tensors):
        yield f"  {{{kind}_{index}, {tensor.nbytes}u}},"
    yield "};"
    yield f"const uint32_t tbn_{kind}_count = {len(tensors)}u;"
    yield ""


def _pointers(kind: str, tensors: Sequence[Tensor]) -> Iterator[str]:
    """The struct that the model takes."""
    yield f"  struct tvmgen_default_{kind}s {kind}s = {{"
    for index, tensor in enumerate(tensors):
        yield f"    .{tensor.identifier} = {kind}_{index},"
    yield "  };"
