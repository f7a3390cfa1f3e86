"""Which instruction-set extensions code needs, and which this machine has; asked without LLVM."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_FLAGS = {
    "x86_64": {
        "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "sse4a": "sse4a",
        "popcnt": "popcnt", "lzcnt": "abm", "bmi": "bmi1", "bmi2": "bmi2", "tbm": "tbm",
        "movbe": "movbe", "avx": "avx", "avx2": "avx2", "fma": "fma", "fma4": "fma4", "xop": "xop",
        "f16c": "f16c", "gfni": "gfni", "avxvnni": "avx_vnni", "avx512f": "avx512f",
        "avx512bw": "avx512bw", "avx512cd": "avx512cd", "avx512dq": "avx512dq",
        "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi",
        "avx512vbmi2": "avx512_vbmi2", "avx512vnni": "avx512_vnni",
        "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq",
        "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16",
    },
    "aarch64": {
        "neon": "asimd", "fullfp16": "asimdhp", "dotprod": "asimddp", "fp16fml": "asimdfhm",
        "i8mm": "i8mm", "bf16": "bf16", "sve": "sve", "sve2": "sve2", "lse": "atomics",
    },
}  # fmt: skip
"""LLVM's names of the extensions that it may use by itself, and Linux's names of the same."""


def architecture() -> str:
    """This machine's architecture, as Linux names it."""
    return platform.machine()


def known_features(names: Iterable[str], machine: str) -> tuple[str, ...]:
    """Those of LLVM's feature names that code generated for an architecture may need, sorted."""
    return tuple(sorted(set(names) & _FLAGS.get(machine, {}).keys()))


@cache
def present_features() -> frozenset[str]:
    """The features of this machine by LLVM's names; empty where Linux does not tell."""
    flags = _FLAGS.get(architecture(), {})
    listed = _listed_flags()
    return frozenset(name for name, flag in flags.items() if flag in listed)


def _listed_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":") for line in lines)
    values = (value for key, _, value in named if key.strip().lower() in ("flags", "features"))
    return frozenset(next(values, "").split())
