"""Schedules for what is no tiled layer: those of TVM's dlight, each where it applies."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import dlight

from tbn_compile.targets.compiled.scheduling import SCHEDULED, is_scheduled

_RULES = (
    dlight.gpu.Matmul(),
    dlight.gpu.GEMV(),
    dlight.gpu.Reduction(),
    dlight.gpu.GeneralReduction(),
    dlight.gpu.Fallback(),
)

_LIMITS = {
    "max_threads_per_block": 1024,
    "max_shared_memory_per_block": 48 * 1024,
    "thread_warp_size": 32,
}
"""They hold on every GPU, without asking one."""
# TVM 0.27 crashes as it tensorizes float16, with newer releases of tvm-ffi than we ask for.
_WITHOUT_TENSOR_CORES = tvm.target.Target({"kind": "cuda", "arch": "sm_60", **_LIMITS})


def gpu_target(host: Any) -> Any:
    """TVM's description of a GPU of compute capability 8.0 or newer.

    Args:
        host: of the CPU that launches.
    """
    return tvm.target.Target({"kind": "cuda", "arch": "sm_80", **_LIMITS}, host=host)


@tvm.transform.module_pass(opt_level=0)
class ScheduleForGpu:
    """Give every TIR function that has none a grid of threads, by the first rule that suits it."""

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Schedule every TIR function of an IRModule."""
        target = tvm.target.Target.current(allow_none=False)
        scheduled = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
        for name, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and not is_scheduled(function):
                scheduled[name] = _scheduled(function, target)
        return scheduled


def _scheduled(function: Any, target: Any) -> Any:
    for rule in _RULES:
        schedule = _apply(rule, function, target)
        if schedule is not None:
            return schedule.mod["main"].with_attr(SCHEDULED, True)
    return function


def _apply(rule: Any, function: Any, target: Any) -> Any:
    """The function under a rule, or None: it does not suit."""
    if isinstance(rule, dlight.gpu.Matmul):
        target = _WITHOUT_TENSOR_CORES
    try:
        result = rule.apply(function, target, False)
    except (AssertionError, RuntimeError, ValueError, s_tir.schedule.ScheduleError):  # misjudged
        return None
    schedule = result[0] if isinstance(result, list) else result
    return schedule if schedule is None or _can_be_built(schedule.mod) else None


def _can_be_built(module: Any) -> bool:
    """Whether sums that several threads share are where TVM can make code of them.

    Its rule for reductions puts those of a grouped convolution elsewhere.
    """
    try:
        s_tir.transform.LowerCrossThreadReduction()(module)
    except ValueError:
        return False
    return True
