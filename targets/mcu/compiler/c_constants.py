"""numpy arrays as C99 constants."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from tbn_compile.errors import ModelError, clean

_ROW = 8
_C_TYPES = {
    "bool": "uint8_t",
    "float32": "float",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def c_type(dtype: str) -> str:
    """The C type of an element type that numpy names so.

    Raises:
        ModelError: if C has none.
    """
    if dtype not in _C_TYPES:
        raise ModelError(f"C has no type for {clean(dtype, 40)}; cast such tensors to float32")
    return _C_TYPES[dtype]


def float_literal(value: float) -> str:
    """A C literal of a float32, exact; NAN and INFINITY need `math.h`."""
    if np.isnan(value):
        return "NAN"
    if np.isinf(value):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if re.search(r"[.e]", text) else f"{text}.0f"


def constant_definition(name: str, array: npt.NDArray[Any]) -> str:
    """A `static const` array that holds the elements of `array` in C order.

    Raises:
        ModelError: if C has no type for them.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    kind = c_type(flat.dtype.name)
    literals = [_literal(value) for value in flat.tolist()] or ["0"]
    rows = (literals[start : start + _ROW] for start in range(0, len(literals), _ROW))
    lines = ",\n".join(f"  {', '.join(row)}" for row in rows)
    return f"static const {kind} {name}[{len(literals)}] = {{\n{lines}\n}};"


def _literal(value: float | int | bool) -> str:
    """A C literal; the least int64 and unsigned numbers beyond it have none without an operator."""
    if isinstance(value, float):
        return float_literal(value)
    if value == -(2**63):
        return "(-9223372036854775807 - 1)"
    return f"{int(value)}u" if value > 2**63 - 1 else f"{int(value)}"
