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


def known(extent: Any) -> int | None:
    """An extent, if it is no symbol."""
    return int(extent) if isinstance(extent, int | tirx.IntImm) else None


def least(part: int, whole: Any, start: Any) -> Any:
    """How many of `part` elements from `start`, a multiple of that, lie in `whole`."""
    extent = known(whole)
    if extent is not None and extent % part == 0:
        return part
    return tirx.min(part, whole - start)


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
