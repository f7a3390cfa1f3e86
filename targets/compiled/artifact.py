"""The artifact: a shared library with its manifest behind it, in one file.

    library · manifest (JSON) · its SHA-256 · its length (8 bytes, little endian) · magic

A dynamic loader maps what the ELF headers name and passes over the rest, so that the file is an
ordinary library to a C++ program. The manifest holds the library's SHA-256: both are checked before
the library is opened. The sums find damage and mistaken files; they are no signature, and code of
unknown origin must not be loaded whatever its sums say.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from tbn_compile.errors import ModelError, clean
from tbn_compile.targets.compiled.manifest import Manifest, parse_manifest

_ELF = b"\x7fELF"
_MAGIC = b"\x00TBNSO1\n"
_DIGEST, _LENGTH = 32, 8
_FOOTER = _DIGEST + _LENGTH + len(_MAGIC)
_LARGEST_MANIFEST = 2**24


class Compilation(NamedTuple):
    """What compiling gives.

    Attributes:
        content: of the artifact's file.
        portable_layers: how many tiled layers the target has no kernel of its own for.
    """

    content: bytes
    portable_layers: int

    @property
    def lines(self) -> tuple[str, ...]:
        """What a user must know of it."""
        if not self.portable_layers:
            return ()
        return (
            f"{self.portable_layers} tiled layers take the portable kernel, which is correct but "
            f"slow: docs/llvm.md and docs/cuda-kernels.md say which layers do",
        )


def pack_artifact(library: bytes, manifest: Manifest) -> bytes:
    """The file's content; `manifest.library_sha256` is filled in."""
    digest = hashlib.sha256(library).hexdigest()
    text = manifest.model_copy(update={"library_sha256": digest}).to_json()
    length = len(text).to_bytes(_LENGTH, "little")
    return b"".join((library, text, hashlib.sha256(text).digest(), length, _MAGIC))


def read_artifact(path: Path) -> tuple[Manifest, bytes]:
    """The manifest and the whole content of an untrusted file, of which nothing has run.

    Raises:
        ModelError: if it cannot be read, is no artifact, or is damaged.
    """
    name = clean(path.name, 80)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{name}: {error.strerror or 'it cannot be read'}") from error
    try:
        return _checked_manifest(content), content
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def _checked_manifest(content: bytes) -> Manifest:
    if not content.startswith(_ELF):
        raise ModelError("it is no shared library; give what target llvm or cuda wrote")
    if len(content) < _FOOTER or not content.endswith(_MAGIC):
        raise ModelError("it has no manifest at its end; it is cut, stripped or not from here")
    digest, length = content[-_FOOTER:][:_DIGEST], content[-_FOOTER + _DIGEST : -len(_MAGIC)]
    end = len(content) - _FOOTER
    size = int.from_bytes(length, "little")
    if size > min(end, _LARGEST_MANIFEST):
        raise ModelError("its manifest has an impossible length; compile the model again")
    text = content[end - size : end]
    if hashlib.sha256(text).digest() != digest:
        raise ModelError("its manifest is damaged; compile the model again")
    manifest = parse_manifest(text)
    library = memoryview(content)[: end - size]
    if hashlib.sha256(library).hexdigest() != manifest.library_sha256:
        raise ModelError("its library is damaged; compile the model again")
    return manifest
