"""The manifest of an artifact: what goes in and out, what it needs, what made it."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tbn_compile import __version__
from tbn_compile.errors import ModelError

Dtype = Literal[
    "bool", "float16", "bfloat16", "float32", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
]  # fmt: skip
"""The element types of inputs and outputs."""

_Extent = Annotated[int, Field(ge=0, le=2**40)]
_Text = Annotated[str, Field(max_length=4096)]
_Capability = Annotated[str, Field(pattern=r"^[0-9]{2,3}a?$")]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class TensorSpec(_Part):
    """An input or output.

    Attributes:
        name: as in the model.
        dtype: of its elements.
        shape: extents. A name stands for an extent that each call chooses; equal names are equal
            extents. An output's may be an expression of them.
    """

    name: _Text
    dtype: Dtype
    shape: Annotated[tuple[_Extent | _Text, ...], Field(max_length=16)]


class Processor(_Part):
    """What the host's code was made for.

    Attributes:
        architecture: as Linux names it, such as "x86_64".
        name: LLVM's name of the processor.
        features: LLVM's names of the instruction-set extensions that the code may use.
    """

    architecture: _Text
    name: _Text
    features: tuple[_Text, ...]


class Manifest(_Part):
    """What an artifact tells about itself.

    Attributes:
        schema_version: of this form.
        model: the name of the file that it was compiled from.
        target: what it was compiled for.
        device: where its inputs and outputs lie.
        processor: what its host code needs.
        cuda_architectures: compute capabilities that it has machine code for, such as "90".
        inputs: in the order of the model.
        outputs: likewise.
        tools: versions of what made it.
        library_sha256: of the bytes of the library, which come before the manifest; zeros until
            both are joined.
    """

    schema_version: Literal[1] = 1
    model: _Text
    target: _Text
    device: Literal["cpu", "cuda"]
    processor: Processor
    cuda_architectures: tuple[_Capability, ...] = ()
    inputs: tuple[TensorSpec, ...]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    tools: dict[_Text, _Text]
    library_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = "0" * 64

    def to_json(self) -> bytes:
        """ASCII JSON, the same bytes for the same content."""
        return json.dumps(self.model_dump(mode="json"), indent=2).encode("ascii")


def parse_manifest(text: bytes) -> Manifest:
    """The manifest in untrusted JSON.

    Raises:
        ModelError: if it is no JSON, of another version, or has a field too few, too many or wrong.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"manifest: {place or 'it'}: {first['msg']}") from error


def tool_versions(**others: str) -> dict[str, str]:
    """Versions of this compiler, of TVM, and of `others`."""
    return {"tbn-compile": __version__, "tvm": version("apache-tvm"), **others}


def encodable(text: str) -> str:
    """Without the lone surrogates that the name of a file or tensor may hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
