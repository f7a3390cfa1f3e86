"""Points on solids as a scanner sees them, labelled, and the two data sets made of them."""

from functools import partial
from math import pi

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datasets.data import Data, Samples

from .objects import OBJECTS, Parts
from .surfaces import Floats, choose

TRAINING_CLOUDS = 10_000
TEST_CLOUDS = 2_000
POINTS = 1_024
DRAWN = POINTS * 4 // 3
"""Points of a solid before a quarter is hidden."""
STRETCH = (0.7, 1.3)
NOISE = 0.02
"""Standard deviation, where the farthest point is at 1."""

Labels = NDArray[np.int64]


def classification() -> Data:
    """Clouds [n, 3, 1024] and the class of each, int64 [n], in the order of `objects.OBJECTS`."""
    (train, classes, _), (test, test_classes, _) = _clouds()
    return _data(Samples(train, classes), Samples(test, test_classes))


def segmentation() -> Data:
    """Clouds [n, 3, 1024] and the part of each point, int64 [n, 1024].

    Parts are numbered over all classes: those of the first class, then of the second, and so on.
    """
    (train, _, parts), (test, _, test_parts) = _clouds()
    return _data(Samples(train, parts), Samples(test, test_parts))


def _clouds() -> list[list[Tensor]]:
    made = make_clouds(TRAINING_CLOUDS, seed=1), make_clouds(TEST_CLOUDS, seed=2)
    return [[torch.from_numpy(array) for array in arrays] for arrays in made]


def _data(train: Samples, test: Samples) -> Data:
    return Data(train, test, prepare=nn.Identity(), augment=augment)


def augment(clouds: Tensor) -> Tensor:
    """Each cloud turned about the vertical axis, with a little more noise."""
    angle = 2 * pi * torch.rand(len(clouds), 1, device=clouds.device)
    x, y, z = clouds.unbind(1)
    turned_x = angle.cos() * x - angle.sin() * y
    turned_y = angle.sin() * x + angle.cos() * y
    turned = torch.stack([turned_x, turned_y, z], 1)
    return turned + NOISE / 2 * torch.randn_like(turned)


def make_clouds(count: int, seed: int) -> tuple[Floats, Labels, Labels]:
    """Clouds [count, 3, points] in the unit ball, classes [count], parts [count, points]."""
    random = np.random.default_rng(seed)
    clouds, classes, labels = [], [], []
    first_label = 0
    for number, build in enumerate(OBJECTS.values()):
        n = len(range(number, count, len(OBJECTS)))
        parts = build(partial(_draw, random, n))
        points, label = hide(*_sample(parts, random, n), random)
        clouds.append(_finish(points, random))
        classes.append(np.full(n, number))
        labels.append(first_label + label)
        first_label += len(parts)
    order = random.permutation(count)
    return (
        np.concatenate(clouds)[order],
        np.concatenate(classes)[order],
        np.concatenate(labels)[order],
    )


def _draw(random: np.random.Generator, n: int, low: float, high: float) -> Floats:
    return random.uniform(low, high, (n, 1)).astype(np.float32)


def _sample(parts: Parts, random: np.random.Generator, n: int) -> tuple[Floats, Labels]:
    """Points [n, drawn, 3] and the number of the part of each, [n, drawn]."""
    surfaces = [surface for part in parts.values() for surface in part]
    part_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    chosen = choose(
        np.concatenate([surface.area for surface in surfaces], 1),
        random.random((n, DRAWN), np.float32),
    )
    uniform = 1 - random.random((4, n, DRAWN), np.float32)
    points = np.empty((n, DRAWN, 3), np.float32)
    for index, surface in enumerate(surfaces):
        np.copyto(points, surface.place(uniform), where=(chosen == index)[..., np.newaxis])
    return points, part_of[chosen]


def hide(points: Floats, labels: Labels, random: np.random.Generator) -> tuple[Floats, Labels]:
    """The nearest `POINTS` of each solid, seen from a random side."""
    direction = random.standard_normal((len(points), 3, 1)).astype(np.float32)
    distance = (points @ direction)[..., 0]
    seen = distance.argpartition(POINTS - 1, axis=1)[:, :POINTS]
    return (
        np.take_along_axis(points, seen[..., np.newaxis], axis=1),
        np.take_along_axis(labels, seen, axis=1),
    )


def _finish(points: Floats, random: np.random.Generator) -> Floats:
    """Stretched, turned about the vertical axis, noisy: [n, points, 3] to [n, 3, points]."""
    n = len(points)
    points = points * random.uniform(*STRETCH, (n, 1, 3)).astype(np.float32)
    angle = random.uniform(0, 2 * pi, n)
    turn = np.zeros((n, 3, 3), np.float32)
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    turn[:, 0, 1] = np.sin(angle)
    turn[:, 1, 0] = -turn[:, 0, 1]
    turn[:, 2, 2] = 1
    points = _fit(points @ turn)
    points = _fit(points + NOISE * random.standard_normal(points.shape, np.float32))
    return np.ascontiguousarray(points.transpose(0, 2, 1))


def _fit(points: Floats) -> Floats:
    """Moved and scaled into the unit ball."""
    points = points - points.mean(1, keepdims=True)
    return points / np.linalg.norm(points, axis=2).max(1)[:, np.newaxis, np.newaxis]
