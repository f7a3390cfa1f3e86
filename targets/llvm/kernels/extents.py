"""Extents and indices, integers or symbolic."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tvm import tirx


def own_extents(extents: Sequence[Any]) -> list[Any]:
    """Extents of a function's first parameter: symbolic ones become variables that it binds."""
    return [
        int(extent) if isinstance(extent, int | tirx.IntImm) else tirx.Var("extent", "int64")
        for extent in extents
    ]


def ravel(places: Sequence[Any], shape: Sequence[int]) -> Any:
    """The flat position of indices."""
    flat: Any = 0
    for place, extent in zip(places, shape, strict=True):
        flat = flat * extent + place
    return flat


def unravel(flat: Any, shape: Sequence[int]) -> list[Any]:
    """The indices of a flat position."""
    places = []
    for axis, extent in enumerate(shape):
        place = flat // prod(shape[axis + 1 :])
        places.append(place % extent if axis else place)
    return places
