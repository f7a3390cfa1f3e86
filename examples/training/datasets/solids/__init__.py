"""Clouds of points on parametric solids, in place of the paper's ModelNet40 and ShapeNet-Part.

`surfaces` ← `objects`, whose parts are made of surfaces ← `clouds`. Proportions, stretching,
direction and noise are random, and the quarter of the points that is farthest in a random direction
is hidden, as in a scan. Points are uniform by area before the stretching.
"""

from .clouds import classification, segmentation

__all__ = ["classification", "segmentation"]
