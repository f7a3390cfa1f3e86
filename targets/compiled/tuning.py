"""Schedules found by search: TVM's meta-schedule measures variants of what is no tiled layer."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule

from tbn_compile.errors import UsageError, clean
from tbn_compile.targets import Tuning
from tbn_compile.targets.compiled.environment import environment
from tbn_compile.targets.compiled.scheduling import SCHEDULED, is_scheduled
from tbn_compile.targets.compiled.tuning_file import Found, Search, read_tuning, write_tuning

_TRACKER = re.compile(r"([\w.-]+):(\d{1,5})/([\w.-]+)")
_CONNECT_SECONDS = 10
_TRIALS_AT_ONCE = 16
_TILED = "tiled_"
"""In the names of portable kernels of tiled layers."""
_INTRINSICS = "tvm.s_tir.tensor_intrin"

tvm_ffi.register_error("UsageError", UsageError)  # it keeps its type on its way through TVM


@tvm.transform.module_pass(opt_level=0)
class ApplyTuning:
    """Schedule TIR functions by what was found before, after a search if trials are asked for.

    Args:
        tuning: see `Tuning`; None leaves the module as it is.
        prepare: called first in each process that builds variants.
    """

    def __init__(self, tuning: Tuning | None, prepare: Callable[[], None] | None = None) -> None:
        self.tuning, self.prepare = tuning, prepare

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Schedule the functions of an IRModule that have no schedule and are in the file.

        Raises:
            UsageError: if there is nothing to search, no variant runs, or the file does not suit.
        """
        if self.tuning is None:
            return module
        target = _search_target(tvm.target.Target.current(allow_none=False))
        content = read_tuning(self.tuning.file)
        if self.tuning.trials:
            seed = 1 + len(content.searches)
            search, found = _search(module, target, self.tuning, self.prepare, seed)
            content = content.with_search(search, found)
            write_tuning(content, self.tuning.file)
        return _apply(module, content.schedules_for(_name(target)), self.tuning.file)


def check_tuning(tuning: Tuning | None, gpu: bool = False) -> None:
    """Fail before the work where a search could not run or the file is none of ours.

    Args:
        tuning: see `Tuning`.
        gpu: whether variants run on a GPU instead of a CPU.

    Raises:
        UsageError: if file, trials, tracker, packages or this machine do not suit.
    """
    if tuning is None:
        return
    name = clean(tuning.file.name, 80)
    if not tuning.trials and not tuning.file.exists():
        raise UsageError(f"there is no tuning file {name}; --tune TRIALS makes one")
    read_tuning(tuning.file)
    if not tuning.trials:
        if tuning.tracker is not None:
            raise UsageError("--rpc-tracker is for a search; give --tune TRIALS too")
        return
    if tuning.trials < 0:
        raise UsageError("--tune needs 1 trial or more")
    if not tuning.file.parent.is_dir():
        raise UsageError(f"there is no folder for the tuning file {name}; make it")
    for package in ("psutil", "cloudpickle", "tornado"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"tuning needs {package}; `pip install tbn-compile[tune]`")
    if tuning.tracker is not None:
        _check_tracker(tuning.tracker)
    elif gpu:
        _check_gpu()


def cost_model() -> str:
    """What picks the variants to measure: "xgb" if xgboost is installed, or "random"."""
    return "xgb" if importlib.util.find_spec("xgboost") else "random"


def tuning_lines(tuning: Tuning | None) -> tuple[str, ...]:
    """What a terminal is told about the search that a compilation made.

    Args:
        tuning: see `Tuning`; the compilation is done.
    """
    if tuning is None or not tuning.trials:
        return ()
    last = read_tuning(tuning.file).searches[-1]
    line = (
        f"Tuned {last.scheduled} of {last.functions} functions by {last.variants} variants, "
        f"ranked by the cost model {last.ranked_by!r}; kept in {clean(tuning.file.name, 80)}"
    )
    if not last.failed:
        return (line,)
    return (line, f"{last.failed} variants failed, the first with: {last.first_failure}")


def _apply(module: Any, schedules: dict[str, Found], file: Path) -> Any:
    functions = _open_functions(module)
    found = {name: schedules.get(_hash(function)) for name, function in functions.items()}
    if functions and not any(found.values()):
        raise UsageError(
            f"{clean(file.name, 80)} has no schedule for this model and processor; "
            f"search with --tune, or leave --tuning-file out"
        )
    scheduled = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    for name, each in found.items():
        if each is not None:
            scheduled[name] = _scheduled(functions[name], each, file)
    return scheduled


def _scheduled(function: Any, found: Found, file: Path) -> Any:
    schedule = s_tir.Schedule(_alone(function))
    try:
        s_tir.schedule.Trace.apply_json_to_schedule(found.steps, schedule)
    except Exception as error:  # TVM's errors have no common base
        raise UsageError(
            f"{clean(file.name, 80)}: the schedule of {clean(found.name, 60)} does not suit it; "
            f"tune to a new file"
        ) from error
    result = schedule.mod["main"]
    return tirx.PrimFunc(result.params, result.body, function.ret_type, function.attrs).with_attr(
        SCHEDULED, True
    )


def _open_functions(module: Any) -> dict[Any, Any]:
    """Those that a schedule can be searched for: no tiled layers, of fixed extents."""
    return {
        name: function
        for name, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc) and _is_open(name.name_hint, function)
    }


def _is_open(name: str, function: Any) -> bool:
    return not is_scheduled(function) and _TILED not in name and _has_fixed_extents(function)


def _has_fixed_extents(function: Any) -> bool:
    extents = [extent for p in function.params for extent in getattr(p.ty, "shape", [None])]
    return all(isinstance(extent, tirx.IntImm) for extent in extents)


def _hash(function: Any) -> str:
    return hashlib.sha256(_alone(function).script().encode()).hexdigest()


def _alone(function: Any) -> Any:
    """A module of one function, named as TVM names it in a search."""
    attributes = {"global_symbol": "main", "tirx.noalias": True}
    return tvm.IRModule({"main": function.with_attr(attributes)})


def _search_target(target: Any) -> Any:
    """The processor as schedules depend on it: one core, whatever launches a GPU's kernels."""
    description = {key: value for key, value in target.export().items() if key != "host"}
    if target.kind.name == "llvm":
        description["num-cores"] = 1
    return tvm.target.Target(description, host=target.host)


def _name(target: Any) -> str:
    description = {key: value for key, value in target.export().items() if key != "host"}
    return json.dumps(description, sort_keys=True, default=list)


def _search(
    module: Any, target: Any, tuning: Tuning, prepare: Callable[[], None] | None, seed: int
) -> tuple[Search, list[Found]]:
    tasks = [
        task
        for task in meta_schedule.relax_integration.extract_tasks(module, target, {})
        if _is_open(task.task_name, _only_function(task.dispatched[0]))
    ]
    if not tasks:
        raise UsageError(
            "nothing to tune: all that is no tiled layer has symbolic extents, or there is "
            "nothing; give extents with --input-dim, or leave --tune out"
        )
    database, failures = meta_schedule.database.MemoryDatabase(), _Failures()
    # Workers must not import what lies in the current folder.
    with environment("PYTHONSAFEPATH", "1"):
        meta_schedule.tune_tasks(
            tasks=_contexts(tasks, tuning.trials, seed),
            task_weights=[task.weight for task in tasks],
            work_dir="",
            max_trials_global=tuning.trials,
            num_trials_per_iter=min(max(tuning.trials // len(tasks), 1), _TRIALS_AT_ONCE),
            builder=_builder(prepare),
            runner=_runner(tuning.tracker),
            database=database,
            cost_model=cost_model(),
            measure_callbacks=[*meta_schedule.MeasureCallback.create("default"), failures],
            task_scheduler=meta_schedule.task_scheduler.GradientBased(seed=seed),
        )
    found = _fastest(tasks, target, database)
    if not found:
        raise UsageError(f"no variant could be measured: {failures.first()}; mend that first")
    search = Search(
        target=_name(target),
        functions=len(tasks),
        scheduled=len(found),
        variants=len(database),
        failed=len(failures.messages),
        first_failure=failures.first(),
        ranked_by=cost_model(),
    )
    return search, found


def _contexts(tasks: Sequence[Any], trials: int, seed: int) -> list[Any]:
    """What TVM wants to know of each task; without the log files of its own function for this."""
    with _without_intrinsics():
        return [
            meta_schedule.TuneContext(
                task.dispatched[0],
                target=task.target,
                space_generator=_space(task.target),
                search_strategy=_strategy(trials),
                task_name=task.task_name,
                rand_state=seed + place,
            )
            for place, task in enumerate(tasks)
        ]


def _fastest(tasks: Sequence[Any], target: Any, database: Any) -> list[Found]:
    found = []
    for task in tasks:
        module = task.dispatched[0]
        for record in database.get_top_k(database.commit_workload(module), 1):
            seconds = [float(each.value) for each in record.run_secs]
            steps = json.loads(json.dumps(record.trace.as_json(), default=_number))
            mean = sum(seconds) / len(seconds)
            function = _hash(_only_function(module))
            found.append(Found(function, _name(target), task.task_name, mean, steps))
    return found


def _number(constant: Any) -> int | float:
    value: int | float = constant.value
    return value


def _only_function(module: Any) -> Any:
    ((_, function),) = module.functions_items()
    return function


def _builder(prepare: Callable[[], None] | None) -> Any:
    """Builds variants in workers; TVM's own way first parses the tensor intrinsics of all GPUs."""

    # A local function travels as it is; `prepare` alone makes workers import this package.
    def build(module: Any, target: Any, _parameters: Any) -> Any:
        rewrite = s_tir.transform.RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)
        return tvm.driver.build(rewrite(module), target=target)

    return meta_schedule.builder.LocalBuilder(f_build=build, initializer=prepare)


@contextmanager
def _without_intrinsics() -> Generator[None]:
    """Keep TVM from importing its tensor intrinsics: that takes half a minute, and none is used."""
    if _INTRINSICS in sys.modules:
        yield
        return
    sys.modules[_INTRINSICS] = ModuleType(_INTRINSICS)
    try:
        yield
    finally:
        del sys.modules[_INTRINSICS]


@derived_object
class _Failures(meta_schedule.measure_callback.PyMeasureCallback):
    """Collects what variants said that did not build or run."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def apply(
        self, _scheduler: Any, _task: int, _candidates: Any, _built: Any, results: Any
    ) -> None:
        self.messages += [str(each.error_msg) for each in results if each.error_msg is not None]

    def first(self) -> str:
        lines = [line.strip() for line in "\n".join(self.messages[:1]).splitlines()]
        return clean(next(filter(None, reversed(lines)), ""), 200)


def _space(target: Any) -> Any:
    """Which variants there are: TVM's usual ones without tensor intrinsics and without threads."""
    kind = target.kind.name
    vectors = meta_schedule.schedule_rule.ParallelizeVectorizeUnroll(
        max_jobs_per_core=-1,
        max_vectorize_extent=64,
        unroll_max_steps=[0, 16, 64, 512],
        unroll_explicit=True,
    )
    rules = meta_schedule.ScheduleRule.create(kind)
    if kind == "llvm":
        threads = meta_schedule.schedule_rule.ParallelizeVectorizeUnroll
        rules = [vectors if isinstance(rule, threads) else rule for rule in rules]
    return meta_schedule.space_generator.PostOrderApply(
        sch_rules=rules,
        postprocs=meta_schedule.Postproc.create(kind),
        mutator_probs=meta_schedule.Mutator.create(kind),
    )


def _strategy(trials: int) -> Any:
    """A search whose own work suits the number of measurements."""
    return meta_schedule.search_strategy.EvolutionarySearch(
        population_size=min(512, 8 * trials),
        init_min_unmeasured=min(50, trials),
        genetic_num_iters=4 if trials > 64 else 1,
    )


def _runner(tracker: str | None) -> Any:
    if tracker is None:
        return meta_schedule.runner.LocalRunner()
    return meta_schedule.runner.RPCRunner(_rpc_configuration(tracker))


def _rpc_configuration(tracker: str) -> Any:
    found = _TRACKER.fullmatch(tracker)
    if found is None:
        raise UsageError(f"the RPC tracker is HOST:PORT/KEY, not {clean(tracker, 60)!r}")
    return meta_schedule.runner.RPCConfig(found[1], int(found[2]), found[3])


def _check_tracker(tracker: str) -> None:
    configuration = _rpc_configuration(tracker)
    host, port, key = configuration[:3]
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no RPC tracker answers at {host}:{port}; "
            f"start one with `python -m tvm.exec.rpc_tracker --port {port} --port-end {port + 1}`"
        ) from error
    if not configuration.count_num_servers():
        raise UsageError(
            f"the RPC tracker at {host}:{port} knows no device {key}; start one there with "
            f"`python -m tvm.exec.rpc_server --tracker {host}:{port} --key {key}`"
        )


def _check_gpu() -> None:
    from tbn_compile.targets.compiled.cuda_device import find_gpu  # noqa: PLC0415

    if find_gpu() is None:
        raise UsageError(
            "--tune for target cuda measures on a GPU and there is none here; tune on a machine "
            "that has one, or name one with --rpc-tracker HOST:PORT/KEY"
        )
