"""What a tiled layer's training step costs beside a plain layer's.

    python benchmarks/training_step.py [--pairs 40] [--threads 1]

A step is forward, backward to input and parameters, and SGD with momentum. Plain and tiled steps
alternate; the ratio is the median over the pairs. "full" trains scores and a separate source of the
scales, "aggregate" their sums only, and "dense" is "full" on the whole weight in place of the
distinct rows. Times in milliseconds are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tbn_compile.training import tile_model

TILES = 4
WARM_UP = 3


class Case(NamedTuple):
    """A layer and the shape of its input."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


class DenseWeight(nn.Linear):
    """As a subclass, it is tiled without the distinct rows."""


class DenseKernel(nn.Conv2d):
    """Likewise."""


CASES = [
    Case("Linear 1024 -> 1024, batch 128", lambda: nn.Linear(1024, 1024), (128, 1024)),
    Case(
        "Conv 128 -> 128, 3x3 on 28x28, batch 32",
        lambda: nn.Conv2d(128, 128, 3, padding=1),
        (32, 128, 28, 28),
    ),
]
DENSE = {nn.Linear: DenseWeight, nn.Conv2d: DenseKernel}


def tiled(case: Case, form: str) -> nn.Module:
    layer = case.build()
    if form == "dense":
        layer.__class__ = DENSE[type(layer)]
    return tile_model(layer, TILES, latent="aggregate" if form == "aggregate" else "full")


def training_step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    rule = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    with torch.no_grad():
        gradient = torch.randn_like(layer(x))
    x = x.clone().requires_grad_()

    def step() -> None:
        rule.zero_grad()
        x.grad = None
        layer(x).backward(gradient)
        rule.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def raise_malloc_thresholds() -> None:
    """Free a large block, as any larger model does, so that glibc keeps freed memory.

    Before that, it returns gradients of 4 MB to the system and faults them in again at each step.
    """
    torch.empty(31 * 2**18)


def measure(case: Case, form: str, pairs: int) -> tuple[float, float, float]:
    """Median seconds of a plain and of a tiled step, and the median ratio."""
    torch.manual_seed(0)
    x = torch.randn(case.shape)
    plain, other = training_step(case.build(), x), training_step(tiled(case, form), x)
    times = [(seconds(plain), seconds(other)) for _ in range(WARM_UP + pairs)][WARM_UP:]
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    return before, after, statistics.median(b / a for a, b in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    raise_malloc_thresholds()
    print(f"p = {TILES}, float32, {arguments.threads} thread(s), torch {torch.__version__}")
    print("| layer | trained | plain ms | tiled ms | tiled / plain |")
    print("|---|---|---|---|---|")
    for case in CASES:
        for form in ("full", "aggregate", "dense"):
            before, after, ratio = measure(case, form, arguments.pairs)
            print(
                f"| {case.name} | {form} | {before * 1e3:.2f} | {after * 1e3:.2f} | {ratio:.2f} |"
            )


if __name__ == "__main__":
    main()
