"""Schedules for what is no tiled layer: few buffers, and sums in a local variable."""

from __future__ import annotations

from math import prod
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import ScheduleError

from tbn_compile.targets.mcu.program import Optimization

_MOST_COPIES = 16
"""Up to so many copies of a sum's statement stand in the code in the place of loops."""
_COPIES = 4
"""So many where a loop is too long for that."""


@tvm.transform.module_pass(opt_level=0)
class ScheduleForSmallCores:
    """Compute stages where they are used, if that repeats no work, and sum in local variables.

    Args:
        optimization: "ram" also computes where it is used what is then computed more than once,
            such as the padding of a dense convolution.
    """

    def __init__(self, optimization: Optimization) -> None:
        self.optimization = optimization

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Schedule every TIR function that has blocks."""
        scheduled = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
        for name, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc):
                scheduled[name] = self._scheduled(function)
        return scheduled

    def _scheduled(self, function: Any) -> Any:
        schedule = s_tir.Schedule(function)
        try:
            root = schedule.get_sblock("root")
        except ScheduleError:  # a kernel of plain loops
            return function
        for block in schedule.get_child_blocks(root)[:-1]:
            self._inline(schedule, block)
        for block in schedule.get_child_blocks(root):
            if _is_reduction(schedule, block) and len(schedule.get(block).writes) == 1:
                self._unroll(schedule, _sum_locally(schedule, block))
        return schedule.mod["main"]

    def _unroll(self, schedule: Any, reduction: list[Any]) -> None:
        """Repeat the code of the innermost sums, as far as a few copies go."""
        if self.optimization == "ram":
            return
        copies = 1
        for loop in reversed(reduction):
            extent = _extent(schedule, loop)
            if copies * extent > _MOST_COPIES:
                break
            copies *= extent
            schedule.unroll(loop)
        if copies == 1 and reduction and _extent(schedule, reduction[-1]) % _COPIES == 0:
            schedule.unroll(schedule.split(reduction[-1], [None, _COPIES])[1])

    def _inline(self, schedule: Any, block: Any) -> None:
        consumers = schedule.get_consumers(block)
        if _is_reduction(schedule, block) or len(consumers) != 1:
            return
        repeats = _iterations(schedule, consumers[0]) > _iterations(schedule, block)
        if repeats and self.optimization != "ram":
            return
        try:
            schedule.compute_inline(block)
        except ScheduleError:  # a stage that several statements write
            return


def _sum_locally(schedule: Any, block: Any) -> list[Any]:
    """Sum in a local variable, inside the loops of the only consumer if they are the same.

    Returns:
        The loops of the sum.
    """
    spatial, reduction = _loops(schedule, block)
    if not spatial:
        return reduction
    consumers = schedule.get_consumers(block)
    extents = [_extent(schedule, loop) for loop in spatial]
    if len(consumers) == 1 and _spatial_extents(schedule, consumers[0]) == extents:
        schedule.compute_at(block, schedule.get_loops(consumers[0])[-1])
        schedule.set_scope(block, 0, "local")
    else:
        schedule.reorder(*spatial, *reduction)
        copy = schedule.cache_write(block, 0, "local")
        schedule.reverse_compute_at(copy, spatial[-1])
    reduction = schedule.get_loops(block)[-len(reduction) :]
    schedule.decompose_reduction(block, reduction[0])
    return reduction


def _loops(schedule: Any, block: Any) -> tuple[list[Any], list[Any]]:
    """The loops around a block: those that count its results, and those that it sums over."""
    kinds = [variable.iter_type for variable in schedule.get(block).iter_vars]
    loops = schedule.get_loops(block)
    paired = list(zip(loops, kinds, strict=True)) if len(loops) == len(kinds) else []
    spatial = [loop for loop, kind in paired if kind != tirx.IterVar.CommReduce]
    return spatial, [loop for loop, kind in paired if kind == tirx.IterVar.CommReduce]


def _is_reduction(schedule: Any, block: Any) -> bool:
    return bool(_loops(schedule, block)[1])


def _spatial_extents(schedule: Any, block: Any) -> list[int]:
    """The extents of the loops around a block that sums nothing; none of one that does."""
    spatial, reduction = _loops(schedule, block)
    return [] if reduction else [_extent(schedule, loop) for loop in spatial]


def _iterations(schedule: Any, block: Any) -> int:
    return prod(_extent(schedule, loop) for loop in schedule.get_loops(block))


def _extent(schedule: Any, loop: Any) -> int:
    return int(schedule.get(loop).extent)
