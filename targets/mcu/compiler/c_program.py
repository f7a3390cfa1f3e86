"""The C files of a program: header, entry point, and everything else.

The names are those that consumers of the Model Library Format, version 7, rely on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tbn_compile.targets.mcu.compiler.c_constants import c_type, constant_definition
from tbn_compile.targets.mcu.compiler.c_source import (
    PREFIX,
    CFunction,
    declaration,
    extremes,
    unused,
)
from tbn_compile.targets.mcu.compiler.executor import Executable, Place, PlacedStep
from tbn_compile.targets.mcu.program import Tensor

HEADER = f"{PREFIX.rstrip('_')}.h"
ENTRY = f"{PREFIX}__tvm_main__"
"""The function behind `run`, called by consumers that know no header."""

_GUARD = f"{PREFIX.upper()}H_"
_NOINLINE = """\
/* Kernels share one workspace under several types, so none may be merged into its caller. */
#if defined(__GNUC__)
#define KERNEL __attribute__((noinline))
#else
#define KERNEL
#endif"""


def header(inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace_bytes: int) -> str:
    """`tvmgen_default.h`: the structs, `run`, and the sizes in bytes."""
    sizes = "\n".join(
        f'/*! Size of {kind} "{tensor.identifier}" in bytes */\n'
        f"#define {PREFIX.upper()}{tensor.identifier.upper()}_SIZE {tensor.nbytes}"
        for kind, tensors in (("input", inputs), ("output", outputs))
        for tensor in tensors
    )
    return f"""\
#ifndef {_GUARD}
#define {_GUARD}
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{sizes}
/*! Size of the static workspace in bytes */
#define {PREFIX.upper()}WORKSPACE_SIZE {workspace_bytes}

{_struct("inputs", inputs)}

{_struct("outputs", outputs)}

/*!
 * \\brief Run the model once.
 * \\param inputs pointers to the inputs' elements, aligned for their type
 * \\param outputs pointers to room for the outputs' elements
 * \\return 0
 */
int32_t {PREFIX}run(struct {PREFIX}inputs* inputs, struct {PREFIX}outputs* outputs);

#ifdef __cplusplus
}}
#endif
#endif /* {_GUARD} */
"""


def entry_source(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """`default_lib0.c`: `run`. It declares what it needs where the header was left behind."""
    arguments = [f"inputs->{tensor.identifier}" for tensor in inputs]
    arguments += [f"outputs->{tensor.identifier}" for tensor in outputs]
    return f"""\
#include <stdint.h>

#if defined(__has_include)
#if __has_include("{HEADER}")
#include "{HEADER}"
#endif
#endif

#ifndef {_GUARD}
{_struct("inputs", inputs)}
{_struct("outputs", outputs)}
int32_t {PREFIX}run(struct {PREFIX}inputs* inputs, struct {PREFIX}outputs* outputs);
#endif

{_entry_signature(len(inputs), len(outputs))};

int32_t {PREFIX}run(struct {PREFIX}inputs* inputs, struct {PREFIX}outputs* outputs) {{
  return {ENTRY}({", ".join(arguments)});
}}
"""


def program_source(
    functions: Iterable[CFunction],
    constants: Sequence[npt.NDArray[Any]],
    executable: Executable,
    inputs: int,
    outputs: int,
) -> str:
    """`default_lib1.c`: constants, workspace, kernels, and the calls in order."""
    used = list(functions)
    calls = "".join(f"  {_call(step, executable.alignment)}\n" for step in executable.steps)
    calls = unused([f"input_{index}" for index in range(inputs)], calls) + calls
    definitions = [
        constant_definition(f"constant_{index}", array) for index, array in enumerate(constants)
    ]
    parts = [
        "#include <math.h>\n#include <stdint.h>\n#include <string.h>",
        _NOINLINE,
        *definitions,
        *_workspace(executable),
        *extremes("".join(function.text for function in used)),
        *(f"KERNEL {declaration(function)}" for function in used),
        *(f"KERNEL {function.text}" for function in used),
        f"{_entry_signature(inputs, outputs)};",
        f"{_entry_signature(inputs, outputs)} {{\n{calls}  return 0;\n}}",
    ]
    return "\n\n".join(parts) + "\n"


def _workspace(executable: Executable) -> Iterable[str]:
    count = executable.workspace_bytes // executable.alignment
    if count:
        yield f"static uint{8 * executable.alignment}_t workspace[{count}];"


def _call(step: PlacedStep, alignment: int) -> str:
    if step.function is None:
        source, target = (_pointer(place, None, alignment) for place in step.places)
        return f"memcpy({target}, {source}, {step.nbytes});"
    arguments = ", ".join(
        _pointer(place, parameter.dtype, alignment)
        for place, parameter in zip(step.places, step.function.parameters, strict=True)
    )
    return f"{step.function.name}({arguments});"


def _pointer(place: Place, dtype: str | None, alignment: int) -> str:
    if place.kind != "workspace":
        return f"{place.kind}_{place.index}"
    start = f"workspace + {place.index // alignment}" if place.index else "workspace"
    kind = "void*" if dtype is None else f"{c_type(dtype)}*"
    same = dtype is not None and np.dtype(dtype) == np.dtype(f"uint{8 * alignment}")
    return start if same else f"({kind})(void*)({start})"


def _entry_signature(inputs: int, outputs: int) -> str:
    names = [f"void* input_{i}" for i in range(inputs)]
    names += [f"void* output_{i}" for i in range(outputs)]
    return f"int32_t {ENTRY}({', '.join(names) or 'void'})"


def _struct(name: str, tensors: Sequence[Tensor]) -> str:
    fields = "\n".join(f"  void* {tensor.identifier};" for tensor in tensors)
    return f"struct {PREFIX}{name} {{\n{fields}\n}};"
