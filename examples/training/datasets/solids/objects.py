"""The classes of solids: of which parts they are, and in which proportions.

Each function makes n solids of its class at once, z upwards.
"""

from collections.abc import Callable
from math import pi

from .surfaces import Floats, Surface, arch, ball, box, frustum

Draw = Callable[[float, float], Floats]
"""Random lengths between two limits, [n, 1]: one for each solid."""
Parts = dict[str, list[Surface]]


def _mug(draw: Draw) -> Parts:
    radius, height = draw(0.5, 0.8), draw(1.0, 2.0)
    grip = height * draw(0.2, 0.35)
    return {
        "wall": [frustum(radius, radius * draw(0.9, 1.2), height)],
        "base": [frustum(0, radius, 0)],
        "handle": [arch(grip, draw(0.06, 0.14)).moved(x=radius, z=height / 2)],
    }


def _bowl(draw: Draw) -> Parts:
    radius, foot = draw(0.8, 1.2), draw(0.25, 0.5)
    return {
        "hull": [ball(radius, high=-0.1)],
        "foot": [frustum(foot, foot, draw(0.1, 0.25)).moved(z=-1.1 * radius)],
    }


def _goblet(draw: Draw) -> Parts:
    stem, rod, foot = draw(0.5, 1.2), draw(0.04, 0.1), draw(0.4, 0.6)
    cup, rim = draw(0.3, 0.5), draw(0.45, 0.7)
    return {
        "cup": [
            frustum(cup, rim, draw(0.6, 1.1)).moved(z=stem),
            frustum(rod, cup, 0).moved(z=stem),
        ],
        "stem": [frustum(rod, rod, stem)],
        "foot": [frustum(0, foot, 0)],
    }


def _bottle(draw: Draw) -> Parts:
    radius, neck = draw(0.35, 0.55), draw(0.1, 0.2)
    body, shoulder = draw(0.9, 1.5), draw(0.2, 0.5)
    return {
        "body": [frustum(radius, radius, body), frustum(0, radius, 0)],
        "shoulder": [frustum(radius, neck, shoulder).moved(z=body)],
        "neck": [frustum(neck, neck, draw(0.25, 0.6)).moved(z=body + shoulder)],
    }


def _vase(draw: Draw) -> Parts:
    base, waist, rim = draw(0.2, 0.45), draw(0.35, 0.65), draw(0.2, 0.5)
    lower, upper = draw(0.5, 1.1), draw(0.3, 0.9)
    return {
        "lower": [frustum(base, waist, lower), frustum(0, base, 0)],
        "upper": [frustum(waist, rim, upper).moved(z=lower)],
    }


def _lamp(draw: Draw) -> Parts:
    foot, rod, pole = draw(0.3, 0.6), draw(0.03, 0.08), draw(0.9, 1.7)
    shade = frustum(draw(0.4, 0.8), draw(0.15, 0.4), draw(0.4, 0.8))
    return {
        "foot": [frustum(0, foot, 0)],
        "pole": [frustum(rod, rod, pole)],
        "shade": [shade.moved(z=pole - 0.2)],
    }


def _table(draw: Draw) -> Parts:
    width, depth, height = draw(1.0, 2.0), draw(0.7, 1.2), draw(0.6, 1.1)
    return {
        "top": [box(width, depth, draw(0.05, 0.15)).moved(z=height)],
        "legs": _legs(width, depth, height, draw(0.06, 0.14)),
    }


def _stool(draw: Draw) -> Parts:
    radius, height = draw(0.4, 0.7), draw(0.7, 1.2)
    thickness, side = draw(0.05, 0.15), 1.4 * radius
    return {
        "seat": [
            frustum(0, radius, 0).moved(z=height),
            frustum(radius, radius, thickness).moved(z=height),
            frustum(0, radius, 0).moved(z=height + thickness),
        ],
        "legs": _legs(side, side, height, draw(0.06, 0.12)),
    }


def _chair(draw: Draw) -> Parts:
    width, depth, height = draw(0.7, 1.0), draw(0.7, 1.0), draw(0.5, 0.9)
    thickness = draw(0.05, 0.12)
    back = box(width, thickness, draw(0.3, 1.0))
    return {
        "seat": [box(width, depth, thickness).moved(z=height)],
        "back": [back.moved(y=(thickness - depth) / 2, z=height + thickness)],
        "legs": _legs(width, depth, height, draw(0.06, 0.12)),
    }


def _legs(width: Floats, depth: Floats, height: Floats, thickness: Floats) -> list[Surface]:
    """Four legs on the floor, below the corners of width × depth."""
    leg = box(thickness, thickness, height)
    x, y = (width - thickness) / 2, (depth - thickness) / 2
    return [leg.moved(i * x, j * y) for i in (-1, 1) for j in (-1, 1)]


def _rocket(draw: Draw) -> Parts:
    radius, body = draw(0.2, 0.35), draw(0.9, 1.6)
    width = draw(0.2, 0.5)
    fin = box(width, draw(0.03, 0.06), draw(0.2, 0.5)).moved(x=radius + width / 2)
    return {
        "body": [frustum(radius, radius, body), frustum(0, radius, 0)],
        "nose": [frustum(radius, 0, draw(0.3, 0.8)).moved(z=body)],
        "fins": [fin.turned(2 * pi * k / 3) for k in range(3)],
    }


def _dumbbell(draw: Draw) -> Parts:
    rod, length = draw(0.06, 0.14), draw(0.9, 1.6)
    left, right = ball(draw(0.25, 0.45)), ball(draw(0.25, 0.45))
    return {
        "bar": [frustum(rod, rod, length).lying()],
        "weights": [left, right.moved(x=length)],
    }


def _hammer(draw: Draw) -> Parts:
    rod, length = draw(0.06, 0.12), draw(1.0, 1.8)
    head = box(draw(0.5, 0.9), draw(0.2, 0.35), draw(0.2, 0.35))
    return {
        "handle": [frustum(rod, rod, length)],
        "head": [head.moved(z=length)],
    }


OBJECTS: dict[str, Callable[[Draw], Parts]] = {
    "mug": _mug,
    "bowl": _bowl,
    "goblet": _goblet,
    "bottle": _bottle,
    "vase": _vase,
    "lamp": _lamp,
    "table": _table,
    "stool": _stool,
    "chair": _chair,
    "rocket": _rocket,
    "dumbbell": _dumbbell,
    "hammer": _hammer,
}
