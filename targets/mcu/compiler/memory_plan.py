"""Place buffers with known lifetimes in one static workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lifetime:
    """What a buffer asks of the plan.

    Attributes:
        nbytes: its size.
        first, last: the steps of the program between which it holds something, both included.
    """

    nbytes: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both hold something at one time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Where each buffer lies.

    Attributes:
        offsets: in bytes from the start of the workspace, in the order of the lifetimes.
        nbytes: of the whole workspace.
    """

    offsets: tuple[int, ...]
    nbytes: int


def plan_memory(lifetimes: Sequence[Lifetime], alignment: int) -> MemoryPlan:
    """Offsets at which no two buffers that live at one time overlap.

    Buffers are placed one by one at the lowest gap that holds them, the best of several orders: the
    largest first, the longest-lived first, and as the program makes them.

    Args:
        lifetimes: one for each buffer.
        alignment: of every offset, in bytes.
    """
    orders = (
        sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].nbytes, lifetimes[i].first)),
        sorted(range(len(lifetimes)), key=lambda i: lifetimes[i].first - lifetimes[i].last),
        sorted(range(len(lifetimes)), key=lambda i: lifetimes[i].first),
    )
    plans = (_place(lifetimes, order, alignment) for order in orders)
    return min(plans, key=lambda plan: plan.nbytes)


def live_bytes(lifetimes: Sequence[Lifetime], step: int) -> int:
    """Bytes in use at one step; no plan can need less than the most of them."""
    return sum(each.nbytes for each in lifetimes if each.first <= step <= each.last)


def _place(lifetimes: Sequence[Lifetime], order: Sequence[int], alignment: int) -> MemoryPlan:
    offsets: dict[int, int] = {}
    for index in order:
        taken = sorted(
            (offsets[other], offsets[other] + lifetimes[other].nbytes)
            for other in offsets
            if lifetimes[index].overlaps(lifetimes[other])
        )
        offsets[index] = _lowest_gap(taken, lifetimes[index].nbytes, alignment)
    end = max((offsets[i] + lifetimes[i].nbytes for i in offsets), default=0)
    return MemoryPlan(tuple(offsets[i] for i in range(len(lifetimes))), _aligned(end, alignment))


def _lowest_gap(taken: Sequence[tuple[int, int]], nbytes: int, alignment: int) -> int:
    start = 0
    for begin, end in taken:
        if start + nbytes <= begin:
            return start
        start = max(start, _aligned(end, alignment))
    return start


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
