"""The processors that LLVM knows, this machine's among them."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.target import codegen

from tbn_compile.errors import UsageError, clean
from tbn_compile.targets.compiled.manifest import Processor
from tbn_compile.targets.compiled.processor import (
    architecture,
    known_features,
    present_features,
)

NATIVE = "native"
"""The name that stands for this machine's own processor."""


def find_processor(name: str = NATIVE) -> Processor:
    """A processor of this machine's architecture.

    Args:
        name: LLVM's name, such as "x86-64-v3", or "native". Of the latter only features that this
            machine has are used; a virtual machine may hide some.

    Raises:
        UsageError: if there is none of that name; the text lists those there are.
    """
    if name == NATIVE:
        own = codegen.llvm_get_system_cpu()
        features = _features(own)
        return _processor(own, tuple(each for each in features if each in present_features()))
    if name not in _known_names():
        listed = ", ".join((NATIVE, *filter(_has_64_bits, sorted(_known_names()))))
        raise UsageError(f"unknown processor {clean(name, 40)!r}; known: {listed}", longest=4000)
    if not _has_64_bits(name):
        raise UsageError(f"processor {name!r} has no 64-bit mode; name a newer one")
    return _processor(name, _features(name))


def missing_features(processor: Processor) -> list[str]:
    """What the code for a processor may need and this machine lacks, sorted."""
    return sorted(set(processor.features) - present_features())


def tvm_target(processor: Processor) -> Any:
    """TVM's description of a processor; what it could do beyond `features` is switched off."""
    off = sorted(set(_features(processor.name)) - set(processor.features))
    description: dict[str, Any] = {"kind": "llvm", "mcpu": processor.name}
    if off:
        description["mattr"] = [f"-{feature}" for feature in off]
    return tvm.target.Target(description)


def vector_lanes(processor: Processor) -> int:
    """How many float32 numbers a vector register holds."""
    widths = ((16, "avx512f"), (8, "avx"))
    return next((lanes for lanes, feature in widths if feature in processor.features), 4)


def can_permute(processor: Processor) -> bool:
    """Whether one instruction picks any entries of a vector register."""
    return not {"avx2", "avx512f"}.isdisjoint(processor.features)


def _processor(name: str, features: tuple[str, ...]) -> Processor:
    return Processor(architecture=architecture(), name=name, features=features)


def _features(name: str) -> tuple[str, ...]:
    return known_features(_every_feature(name), architecture())


def _every_feature(name: str) -> list[str]:
    target = tvm.target.Target({"kind": "llvm", "mcpu": name})
    return list(map(str, codegen.llvm_get_cpu_features(target)))


def _known_names() -> list[str]:
    return list(map(str, codegen.llvm_get_cpu_archlist(tvm.target.Target("llvm"))))


def _has_64_bits(name: str) -> bool:
    """Whether LLVM can make 64-bit code for it; for others it would end the process."""
    return architecture() != "x86_64" or "64bit" in _every_feature(name)
