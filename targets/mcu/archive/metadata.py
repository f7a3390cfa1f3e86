"""The `metadata.json` of Model Library Format archives.

The format is version 7, as TVM 0.18 wrote it (`python/tvm/micro/model_library_format.py` there).
What it has no room for lies in `modules.default.tbn_compile`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tbn_compile.errors import ModelError
from tbn_compile.targets.mcu.program import Operator, Program, Tensor

VERSION = 7
MODULE = "default"
"""Consumers look for a module of this name."""

_CPU = 1  # TVM's number for this kind of device
_Size = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Extent = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class BufferMetadata(_Part):
    """An input or output; its size is in bytes."""

    size: _Size
    dtype: str


class MainMetadata(_Part):
    """What a whole inference needs. Inputs and outputs go by the names of their struct's fields."""

    device: int
    workspace_size_bytes: _Size
    constants_size_bytes: _Size
    io_size_bytes: _Size
    inputs: dict[str, BufferMetadata]
    outputs: dict[str, BufferMetadata]


class WorkspaceMetadata(_Part):
    """What an operator needs on a device for itself."""

    device: int
    workspace_size_bytes: _Size


class FunctionMetadata(_Part):
    """A C function that computes an operator."""

    function_name: str
    workspace: list[WorkspaceMetadata]


class FunctionsMetadata(_Part):
    """The C functions; `main` has one element for each device."""

    main: list[MainMetadata] = Field(min_length=1)
    operator_functions: list[FunctionMetadata]


class MemoryMetadata(_Part):
    """The memory map."""

    functions: FunctionsMetadata


class TensorMetadata(_Part):
    """A `Tensor`, in the model's order."""

    name: str
    identifier: _Identifier
    shape: tuple[_Extent, ...]
    dtype: str
    step: float = Field(ge=0, allow_inf_nan=False)


class OperatorMetadata(_Part):
    """An `Operator`, in the order of execution."""

    function_name: _Identifier
    layer: str
    kernel: str
    workspace_size_bytes: _Size
    live_size_bytes: _Size


class TbnMetadata(_Part):
    """What tbn-compile adds: what else a `Program` tells, and which layer causes the peak of RAM.

    `peak_ram_bytes` counts the workspace, inputs and outputs.
    """

    schema_version: Literal[1] = 1
    model_name: str
    core: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    operators: tuple[OperatorMetadata, ...]
    weight_size_bytes: _Size
    peak_ram_bytes: _Size
    peak_layer: str | None


class ModuleMetadata(_Part):
    """One module. TVM's `model_name` is the module's name; the model's own is in `tbn_compile`."""

    model_name: str
    export_datetime: str
    target: list[str]
    executors: list[str]
    style: Literal["full-model"]
    memory: MemoryMetadata
    tbn_compile: TbnMetadata | None = None


class Metadata(_Part):
    """The whole file."""

    version: Literal[5, 6, 7]
    modules: dict[str, ModuleMetadata]


def write_metadata(program: Program, time: int) -> str:
    """The text of `metadata.json`: ASCII, keys sorted as TVM sorts them.

    Args:
        program: what the archive holds.
        time: of the export, in seconds since 1970.
    """
    module = ModuleMetadata(
        model_name=MODULE,
        export_datetime=datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%SZ"),
        target=["c" if program.core == "c" else f"c -mcpu={program.core}"],
        executors=["aot"],
        style="full-model",
        memory=MemoryMetadata(functions=_functions(program)),
        tbn_compile=_additions(program),
    )
    entries = {**module.model_dump(), "external_dependencies": []}
    return json.dumps({"version": VERSION, "modules": {MODULE: entries}}, indent=2, sort_keys=True)


def read_metadata(text: bytes) -> ModuleMetadata:
    """The module of an untrusted `metadata.json`.

    Raises:
        ModelError: if it is no JSON, of an unknown version, lacks the module or a field of it, or
            has one of the wrong type or size.
    """
    try:
        modules = Metadata.model_validate_json(text).modules
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"metadata.json: {place or 'the file'}: {first['msg']}") from error
    if MODULE not in modules:
        raise ModelError(f"metadata.json: no module named {MODULE}")
    return modules[MODULE]


def _functions(program: Program) -> FunctionsMetadata:
    main = MainMetadata(
        device=_CPU,
        workspace_size_bytes=program.workspace_bytes,
        constants_size_bytes=program.constant_bytes,
        io_size_bytes=program.io_bytes,
        inputs={t.identifier: BufferMetadata(size=t.nbytes, dtype=t.dtype) for t in program.inputs},
        outputs={
            t.identifier: BufferMetadata(size=t.nbytes, dtype=t.dtype) for t in program.outputs
        },
    )
    workspaces: dict[str, int] = {}
    for operator in program.operators:
        name = operator.function_name
        workspaces[name] = max(operator.workspace_bytes, workspaces.get(name, 0))
    functions = [
        FunctionMetadata(
            function_name=name,
            workspace=[WorkspaceMetadata(device=_CPU, workspace_size_bytes=size)],
        )
        for name, size in workspaces.items()
    ]
    return FunctionsMetadata(main=[main], operator_functions=functions)


def _additions(program: Program) -> TbnMetadata:
    peak = program.peak_operator
    return TbnMetadata(
        model_name=_encodable(program.model_name),
        core=program.core,
        inputs=tuple(_tensor(tensor) for tensor in program.inputs),
        outputs=tuple(_tensor(tensor) for tensor in program.outputs),
        operators=tuple(_operator(operator) for operator in program.operators),
        weight_size_bytes=program.weight_bytes,
        peak_ram_bytes=program.workspace_bytes + program.io_bytes,
        peak_layer=None if peak is None else _encodable(peak.layer),
    )


def _tensor(tensor: Tensor) -> TensorMetadata:
    return TensorMetadata(
        name=_encodable(tensor.name),
        identifier=tensor.identifier,
        shape=tensor.shape,
        dtype=tensor.dtype,
        step=tensor.step,
    )


def _operator(operator: Operator) -> OperatorMetadata:
    return OperatorMetadata(
        function_name=operator.function_name,
        layer=_encodable(operator.layer),
        kernel=operator.kernel,
        workspace_size_bytes=operator.workspace_bytes,
        live_size_bytes=operator.live_bytes,
    )


def _encodable(text: str) -> str:
    """Without the lone surrogates that a file name may hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
