"""A self-test in C: the model on one sample, against what ONNX Runtime gives for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tbn_compile.targets.mcu.compiler.c_constants import c_type, constant_definition, float_literal
from tbn_compile.targets.mcu.program import Program
from tbn_compile.targets.mcu.templating import render

HEADER = "tvmgen_default_self_test.h"
SOURCE = "tvmgen_default_self_test.c"
TOLERANCE = 1e-5
"""Greatest error of a float output, as a share of the expected output's largest magnitude."""


def self_test_sources(program: Program) -> dict[str, str]:
    """C99 sources that any project with the program's own can compile, by file name.

    They define `int32_t tvmgen_default_self_test(void)`: 0 if every output is as expected, the
    number of elements that are not, or what the model returned where that is not 0. Floats may
    differ by `TOLERANCE`, quantised activations and what they stand for by one step, other integers
    not at all.

    Raises:
        ModelError: if C has no type for an input or output.
    """
    inputs = [
        {"field": tensor.identifier, "definition": constant_definition(f"input{index}", values)}
        for index, (tensor, values) in enumerate(
            zip(program.inputs, program.sample.inputs, strict=True)
        )
    ]
    outputs = [
        {
            "field": tensor.identifier,
            "definition": constant_definition(f"expected{index}", values),
            "type": c_type(tensor.dtype),
            "elements": max(values.size, 1),
            "differs": _difference(f"actual{index}[i]", f"expected{index}[i]", values, tensor.step),
        }
        for index, (tensor, values) in enumerate(
            zip(program.outputs, program.sample.outputs, strict=True)
        )
    ]
    values = {
        "inputs": inputs,
        "outputs": outputs,
        "header": HEADER,
        "needs_math": any(
            array.dtype == np.float32 and not np.isfinite(array).all()
            for array in (*program.sample.inputs, *program.sample.outputs)
        ),
    }
    return {name: render(f"self_test/{name}.jinja", **values) for name in (HEADER, SOURCE)}


def _difference(actual: str, expected: str, values: npt.NDArray[Any], step: float) -> str:
    """A C expression: whether an element is not what it should be."""
    if values.dtype == np.float32:
        largest = np.max(np.abs(values), where=np.isfinite(values), initial=0)
        tolerance = max(TOLERANCE * largest, 1.001 * step)
        return f"differs({actual}, {expected}, {float_literal(tolerance)})"
    if values.dtype.itemsize == 1 and values.dtype != np.bool_:
        return f"{actual} > {expected} + 1 || {actual} + 1 < {expected}"
    return f"{actual} != {expected}"
