"""A schedule for what is no tiled layer: matrix products add up whole rows of their result."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.schedule import ScheduleError

from tbn_compile.targets.compiled.scheduling import is_scheduled


@tvm.transform.module_pass(opt_level=0)
class AddUpRows:
    """Reorder sums of products so that the innermost loop runs along the result's last axis.

    There LLVM finds vectors; as TVM writes them the innermost loop is a chain of additions.
    """

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Schedule every TIR function that has blocks."""
        scheduled = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
        for name, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and not is_scheduled(function):
                scheduled[name] = _scheduled(function)
        return scheduled


def _scheduled(function: Any) -> Any:
    schedule = s_tir.Schedule(function)
    try:
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    except ScheduleError:  # a kernel of plain loops
        return function
    for block in blocks:
        if _adds_up_rows(schedule.get(block)):
            _add_up_rows(schedule, block)
        else:
            _split_copies(schedule, block)
    return schedule.mod["main"]


def _split_copies(schedule: Any, block: Any) -> None:
    """Cut the loop over outputs that repeat every few rows into one over copies and one over rows.

    LLVM 22 takes `output % 4`, as an index of what lies 8 numbers apart, for `output % 8` in
    vectors of 8.
    """
    variables, loops = list(schedule.get(block).iter_vars), schedule.get_loops(block)
    if len(loops) != len(variables):
        return
    periods: dict[int, int] = {}

    def note(node: Any) -> Any:
        for place, variable in enumerate(variables):
            if isinstance(node.b, tirx.IntImm) and node.a.same_as(variable.var):
                periods.setdefault(place, int(node.b))
        return node

    tvm_ffi.structural_map(schedule.get(block).body, (tirx.FloorMod, note))
    for place, period in periods.items():
        extent = schedule.get(loops[place]).extent
        if isinstance(extent, tirx.IntImm) and int(extent) > period:
            schedule.split(loops[place], [None, period])


def _add_up_rows(schedule: Any, block: Any) -> None:
    kinds = [variable.iter_type for variable in schedule.get(block).iter_vars]
    loops = schedule.get_loops(block)
    if len(loops) != len(kinds):  # an axis of one element has no loop
        return
    paired = list(zip(loops, kinds, strict=True))
    sums = [loop for loop, kind in paired if kind == tirx.IterVar.CommReduce]
    rows = [loop for loop, kind in paired if kind != tirx.IterVar.CommReduce]
    schedule.reorder(*rows[:-1], *sums, rows[-1])
    schedule.decompose_reduction(block, sums[0])


def _adds_up_rows(block: Any) -> bool:
    """Whether a block sums over something and reads along the last axis of what it writes."""
    variables = list(block.iter_vars)
    spatial = [v.var for v in variables if v.iter_type == tirx.IterVar.DataPar]
    if (
        block.init is None
        or len(block.writes) != 1
        or not spatial
        or len(spatial) == len(variables)
    ):
        return False
    last = spatial[-1]
    written = block.writes[0].region
    if not written or not written[-1].min.same_as(last):
        return False
    along = [r.region for r in block.reads if any(axis.min.same_as(last) for axis in r.region)]
    return bool(along) and all(region[-1].min.same_as(last) for region in along)
