"""Which TIR functions still need a schedule."""

from __future__ import annotations

from typing import Any

SCHEDULED = "tirx.is_scheduled"
"""TVM's name of the attribute that keeps its passes from scheduling a function again."""

_OPAQUE = 8
FINISHED_KERNEL = {"op_pattern": _OPAQUE, SCHEDULED: True}
"""Attributes of a TIR function that TVM is neither to schedule nor to fuse with others."""


def is_scheduled(function: Any) -> bool:
    """Whether a TIR function is to be left as it is."""
    return function.attrs is not None and bool(function.attrs.get(SCHEDULED, False))
