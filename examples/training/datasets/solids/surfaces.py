"""Surfaces of which points can be drawn, uniform by area; the objects are made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Lengths = float | Floats
"""One length, or one for each solid, [n, 1]."""


@dataclass(frozen=True)
class Surface:
    """The same surface of n solids, in different proportions.

    Attributes:
        area: [n, 1].
        place: points [n, points, 3] from numbers uniform in (0, 1], [4, n, points].
    """

    area: Floats
    place: Callable[[Floats], Floats]

    def moved(self, x: Lengths = 0, y: Lengths = 0, z: Lengths = 0) -> "Surface":
        """Moved along the axes."""
        return Surface(self.area, lambda u: self.place(u) + _points(u, x, y, z))

    def turned(self, angle: float) -> "Surface":
        """Turned about the vertical axis."""
        sine, cosine = np.sin(angle), np.cos(angle)
        matrix = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], np.float32)
        return Surface(self.area, lambda u: self.place(u) @ matrix)

    def lying(self) -> "Surface":
        """Turned so that up becomes x."""
        return Surface(self.area, lambda u: np.roll(self.place(u), 1, axis=2))


def frustum(bottom: Lengths, top: Lengths, height: Lengths) -> Surface:
    """The side of a cone cut off, standing on z = 0; `bottom` and `top` are its radii.

    Equal radii make a cylinder, no height makes a disc or a ring.
    """

    def place(u: Floats) -> Floats:
        radius = np.sqrt(bottom**2 + u[0] * (top**2 - bottom**2))
        up = u[0] * (bottom + top) / (bottom + radius)
        angle = 2 * pi * u[1]
        return _points(u, radius * np.cos(angle), radius * np.sin(angle), up * height)

    return Surface(pi * (bottom + top) * np.hypot(height, top - bottom), place)


def ball(radius: Floats, low: float = -1, high: float = 1) -> Surface:
    """The zone of a sphere around the origin between the heights `low` and `high`, in radii."""

    def place(u: Floats) -> Floats:
        up = low + u[0] * (high - low)  # equal heights have equal areas
        around, angle = np.sqrt(1 - up**2), 2 * pi * u[1]
        x, y = around * np.cos(angle), around * np.sin(angle)
        return _points(u, radius * x, radius * y, radius * up)

    return Surface(2 * pi * radius**2 * (high - low), place)


def arch(radius: Floats, thickness: Floats) -> Surface:
    """Half a torus around the origin in the plane of x and z, where x is positive.

    The outside of the tube has more area, in proportion to 1 + thickness / radius · cos(angle).
    Angles that are too many by this are mirrored.
    """

    def place(u: Floats) -> Floats:
        along, around = pi * (u[0] - 0.5), 2 * pi * u[1]
        mirrored = 2 * u[2] > 1 + thickness / radius * np.cos(around)
        around = np.where(mirrored, pi - around, around)
        reach = radius + thickness * np.cos(around)
        x, z = reach * np.cos(along), reach * np.sin(along)
        return _points(u, x, thickness * np.sin(around), z)

    return Surface(2 * pi**2 * radius * thickness, place)


def box(width: Floats, depth: Floats, height: Floats) -> Surface:
    """All sides of a box that stands on z = 0, along x, y and z, with the origin in its middle."""
    size = np.concatenate([width, depth, height], 1)
    sides = np.tile(size.prod(1, keepdims=True) / size, 2)

    def place(u: Floats) -> Floats:
        side = choose(sides, u[3])[..., np.newaxis]
        cube = np.moveaxis(u[:3], 0, 2).copy()
        np.put_along_axis(cube, side % 3, side // 3, axis=2)
        return (cube - np.array([0.5, 0.5, 0], np.float32)) * size[:, np.newaxis]

    return Surface(sides.sum(1, keepdims=True), place)


def choose(weights: Floats, u: Floats) -> NDArray[np.int64]:
    """Indices [n, points] below k, in proportion to weights [n, k], from uniform numbers."""
    share = weights.cumsum(1)[:, :-1] / weights.sum(1, keepdims=True)
    return (u[..., np.newaxis] > share[:, np.newaxis]).sum(2)


def _points(u: Floats, x: Lengths, y: Lengths, z: Lengths) -> Floats:
    return np.stack([np.broadcast_to(axis, u.shape[1:]) for axis in (x, y, z)], axis=2)
