"""Model Library Format archives, as TVM 0.18 wrote them and microTVM's consumers read them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.files import staging_folder
from tbn_compile.targets.mcu.archive.metadata import (
    ModuleMetadata,
    TbnMetadata,
    TensorMetadata,
    read_metadata,
    write_metadata,
)
from tbn_compile.targets.mcu.archive.self_test import self_test_sources
from tbn_compile.targets.mcu.archive.tar_files import read_tar, write_tar
from tbn_compile.targets.mcu.compiler.c_constants import c_type
from tbn_compile.targets.mcu.cores import CORES
from tbn_compile.targets.mcu.program import Operator, Program, Sample, Tensor

_CODE = "codegen/host"
_SELF_TEST = "self_test"
"""Outside `_CODE`: consumers compile every `.c` file below that."""
_SOURCES = frozenset({"tvmgen_default.h", "default_lib0.c", "default_lib1.c"})
_NO_PARAMETERS = 0xF7E58D4F05049CB7.to_bytes(8, "little") + bytes(24)
"""An empty dictionary, as TVM stores dictionaries of tensors."""
_EXPORT_TIME = 315_532_800
"""1980-01-01, the first day that every archive format can tell."""
_LAST_TIME = 2**33 - 1
_MAX_TENSOR_BYTES = 2**28


@dataclass(frozen=True)
class ArchiveContents:
    """What an archive holds.

    Attributes:
        metadata: of its module `default`; texts in it are untrusted.
        sources: C sources and headers of the model, by file name.
        program: all of it, if tbn-compile wrote the archive; else None.
    """

    metadata: ModuleMetadata
    sources: Mapping[str, str]
    program: Program | None


def write_archive(program: Program, path: Path) -> None:
    """Write a program as an archive of version 7, whole or not at all.

    The same program gives the same bytes; the time in it is `SOURCE_DATE_EPOCH`, else 1980-01-01.
    Beside what the format asks for, `self_test/` holds a sample as C (see `self_test_sources`) and
    as plain little-endian elements.

    Raises:
        ModelError: if the archive cannot be written.
        UsageError: if `SOURCE_DATE_EPOCH` is no number of seconds.
    """
    time = _export_time()
    texts = {
        "metadata.json": write_metadata(program, time),
        **{_source_member(name): text for name, text in program.sources.items()},
        **{f"{_SELF_TEST}/{name}": text for name, text in self_test_sources(program).items()},
    }
    files = {name: text.encode() for name, text in texts.items()}
    files["parameters/default.params"] = _NO_PARAMETERS
    for kind, arrays in (("input", program.sample.inputs), ("output", program.sample.outputs)):
        for index, array in enumerate(arrays):
            files[_sample_member(kind, index)] = array.astype(_stored(array.dtype)).tobytes()
    with staging_folder(path) as staging:
        write_tar(staging / path.name, files, ("src",), time)


def read_archive(path: Path) -> ArchiveContents:
    """Read an untrusted archive; nothing is extracted to disk.

    Raises:
        ModelError: if it is missing, unsafe, damaged or no archive of versions 5 to 7, or claims to
            be written by tbn-compile and is not as `write_archive` writes it.
    """
    try:
        files = read_tar(path)
        if "metadata.json" not in files:
            raise ModelError("not a Model Library Format archive: it holds no metadata.json")
        metadata = read_metadata(files["metadata.json"])
        sources = _read_sources(files)
        additions = metadata.tbn_compile
        program = _read_program(metadata, additions, sources, files) if additions else None
    except ModelError as error:
        raise ModelError(f"{clean(path.name, 80)}: {error}") from error
    return ArchiveContents(metadata, sources, program)


def read_program(path: Path) -> Program:
    """The program in an untrusted archive.

    Raises:
        ModelError: as `read_archive` does, and if another compiler wrote the archive.
    """
    program = read_archive(path).program
    if program is None:
        name = clean(path.name, 80)
        raise ModelError(f"{name}: not written by tbn-compile; give an archive that it wrote")
    return program


def _export_time() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", str(_EXPORT_TIME))
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _LAST_TIME):
        raise UsageError(f"SOURCE_DATE_EPOCH is {clean(text, 40)!r}; give seconds since 1970")
    return int(text)


def _source_member(name: str) -> str:
    return f"{_CODE}/{'include' if name.endswith('.h') else 'src'}/{name}"


def _sample_member(kind: str, index: int) -> str:
    return f"{_SELF_TEST}/{kind}{index}.bin"


def _stored(dtype: npt.DTypeLike) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


def _read_sources(files: Mapping[str, bytes]) -> dict[str, str]:
    sources: dict[str, str] = {}
    for member, content in files.items():
        path = PurePosixPath(member)
        if not path.is_relative_to(_CODE) or path.suffix not in (".c", ".h"):
            continue
        if path.name in sources:
            raise ModelError(f"holds two sources named {path.name}")
        try:
            sources[path.name] = content.decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"{path.name} is not text in UTF-8") from error
    return sources


def _read_program(
    metadata: ModuleMetadata,
    additions: TbnMetadata,
    sources: Mapping[str, str],
    files: Mapping[str, bytes],
) -> Program:
    if additions.core not in CORES:
        known = ", ".join(CORES)
        raise ModelError(f"compiled for an unknown core, {clean(additions.core, 40)!r}; {known}")
    if sources.keys() != _SOURCES:
        raise ModelError(f"holds other sources than {', '.join(sorted(_SOURCES))}")
    inputs, outputs = _tensors(additions.inputs), _tensors(additions.outputs)
    main = metadata.memory.functions.main[0]
    return Program(
        model_name=additions.model_name,
        core=additions.core,
        inputs=inputs,
        outputs=outputs,
        operators=tuple(
            Operator(o.function_name, o.layer, o.workspace_size_bytes, o.live_size_bytes, o.kernel)
            for o in additions.operators
        ),
        workspace_bytes=main.workspace_size_bytes,
        constant_bytes=main.constants_size_bytes,
        weight_bytes=additions.weight_size_bytes,
        sources=sources,
        sample=Sample(_arrays("input", inputs, files), _arrays("output", outputs, files)),
    )


def _tensors(metadata: Iterable[TensorMetadata]) -> tuple[Tensor, ...]:
    tensors = tuple(Tensor(t.name, t.identifier, t.shape, t.dtype, t.step) for t in metadata)
    for tensor in tensors:
        c_type(tensor.dtype)
        if tensor.nbytes > _MAX_TENSOR_BYTES:
            raise ModelError(f"metadata.json: tensor {tensor.identifier} is too large")
    if len({tensor.identifier.lower() for tensor in tensors}) != len(tensors):
        raise ModelError("metadata.json: two inputs or two outputs have one identifier")
    return tensors


def _arrays(
    kind: str, tensors: tuple[Tensor, ...], files: Mapping[str, bytes]
) -> tuple[npt.NDArray[Any], ...]:
    return tuple(
        _array(_sample_member(kind, index), tensor, files) for index, tensor in enumerate(tensors)
    )


def _array(member: str, tensor: Tensor, files: Mapping[str, bytes]) -> npt.NDArray[Any]:
    content = files.get(member, b"")
    if len(content) != tensor.nbytes:
        raise ModelError(f"{member} holds {len(content)} bytes instead of {tensor.nbytes}")
    stored = np.frombuffer(content, _stored(tensor.dtype)).reshape(tensor.shape)
    return stored.astype(tensor.dtype)
