"""What a fat binary holds, read from its headers."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from tbn_compile.errors import ModelError

MAGIC = struct.pack("<I", 0xBA55ED50)
_HEADER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ12xI")
_KINDS: dict[int, Literal["ptx", "cubin"]] = {1: "ptx", 2: "cubin"}


@dataclass(frozen=True)
class Entry:
    """One program in a fat binary.

    Attributes:
        kind: "ptx", which a driver compiles for newer devices, or "cubin", machine code.
        architecture: its compute capability times ten, such as 90.
    """

    kind: Literal["ptx", "cubin"]
    architecture: int


def read_entries(content: bytes) -> tuple[Entry, ...]:
    """The programs in a fat binary, in order.

    Args:
        content: the whole of it; bytes after its end are ignored.

    Raises:
        ModelError: if it is none, or cut short.
    """
    if len(content) < _HEADER.size or not content.startswith(MAGIC):
        raise ModelError("no fat binary of CUDA code")
    _, _, position, size = _HEADER.unpack_from(content)
    end = position + size
    entries = []
    while position < end:
        if end > len(content) or position + _ENTRY.size > end:
            raise ModelError("a fat binary of CUDA code is cut short")
        kind, _, header, length, architecture = _ENTRY.unpack_from(content, position)
        if kind not in _KINDS or header < _ENTRY.size:
            raise ModelError(f"a fat binary holds a program of unknown kind {kind}")
        entries.append(Entry(_KINDS[kind], architecture))
        position += header + length
    return tuple(entries)
