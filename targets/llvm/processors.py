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
    known = codegen.llvm_get_cpu_archlist(tvm.target.Target("llvm"))
    if name not in known:
        listed = ", ".join((NATIVE, *sorted(map(str, known))))
        raise UsageError(f"unknown processor {clean(name, 40)!r}; known: {listed}", longest=4000)
    return _processor(name, _features(name))


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
    target = tvm.target.Target({"kind": "llvm", "mcpu": name})
    return known_features(codegen.llvm_get_cpu_features(target), architecture())
