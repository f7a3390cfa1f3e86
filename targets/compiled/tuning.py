"""Schedules found by search: TVM's meta-schedule measures variants of what is no tiled layer.

What it finds is kept in one file, JSON, that suits any machine and is read again by later
compilations: the functions that were searched, and the steps of their best schedules. Such a file
is as trusted as code.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.s_tir import meta_schedule

from tbn_compile.errors import UsageError, clean
from tbn_compile.files import staging_folder
from tbn_compile.targets import Tuning
from tbn_compile.targets.compiled.scheduling import is_scheduled

_FORMAT = 1
_PARTS = {"workloads": "database_workload.json", "records": "database_tuning_record.json"}
_TRACKER = re.compile(r"([\w.-]+):(\d{1,5})/([\w.-]+)")
_TRIALS_AT_ONCE = 16


@tvm.transform.module_pass(opt_level=0)
class ApplyTuning:
    """Schedule TIR functions by what was found before, after a search if trials are asked for.

    Args:
        tuning: see `Tuning`; None leaves the module as it is.
    """

    def __init__(self, tuning: Tuning | None) -> None:
        self.tuning = tuning

    def transform_module(self, module: Any, _context: Any) -> Any:
        """Schedule the functions of an IRModule that have no schedule and are in the file."""
        if self.tuning is None:
            return module
        target = tvm.target.Target.current(allow_none=False)
        with tempfile.TemporaryDirectory() as folder:
            _unpack(self.tuning.file, Path(folder))
            database = meta_schedule.database.JSONDatabase(work_dir=folder)
            if self.tuning.trials:
                _search(module, target, self.tuning, database, folder)
                _pack(Path(folder), self.tuning.file)
            with database:
                return relax.transform.MetaScheduleApplyDatabase()(module)


def check_tuning(tuning: Tuning | None) -> None:
    """Fail before the work where a search could not run.

    Raises:
        UsageError: if trials, tracker or packages do not suit.
    """
    if tuning is None or not tuning.trials:
        return
    if tuning.trials < 0:
        raise UsageError("--tune needs 1 trial or more")
    if tuning.tracker is not None:
        _tracker(tuning.tracker)
    for package in ("psutil", "cloudpickle", "tornado"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"tuning needs {package}; `pip install tbn-compile[tune]`")


def _search(module: Any, target: Any, tuning: Tuning, database: Any, folder: str) -> None:
    logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
    if target.kind.name == "llvm":
        target = tvm.target.Target({**target.export(), "num-cores": 1})
    tasks = [
        task
        for task in meta_schedule.relax_integration.extract_tasks(module, target, {})
        if not any(map(is_scheduled, _functions(task)))
    ]
    if not tasks:
        return
    contexts, weights = meta_schedule.relax_integration.extracted_tasks_to_tune_contexts(
        tasks, folder, strategy=_strategy(tuning.trials), seed=0
    )
    meta_schedule.tune_tasks(
        tasks=contexts,
        task_weights=weights,
        work_dir=folder,
        max_trials_global=tuning.trials,
        num_trials_per_iter=min(tuning.trials, _TRIALS_AT_ONCE),
        runner=_runner(tuning.tracker),
        database=database,
        cost_model=cost_model(),
    )


def _strategy(trials: int) -> Any:
    """A search whose own work suits the number of measurements."""
    return meta_schedule.search_strategy.EvolutionarySearch(
        population_size=min(512, 8 * trials),
        init_min_unmeasured=min(50, trials),
        genetic_num_iters=4 if trials > 64 else 1,
    )


def cost_model() -> str:
    """What ranks variants before they are measured: "xgb" if xgboost is installed, or "random"."""
    return "xgb" if importlib.util.find_spec("xgboost") else "random"


def _runner(tracker: str | None) -> Any:
    if tracker is None:
        return meta_schedule.runner.LocalRunner()
    host, port, key = _tracker(tracker)
    configuration = meta_schedule.runner.RPCConfig(host, port, key)
    return meta_schedule.runner.RPCRunner(configuration)


def _tracker(text: str) -> tuple[str, int, str]:
    found = _TRACKER.fullmatch(text)
    if found is None:
        raise UsageError(f"the RPC tracker is HOST:PORT/KEY, not {clean(text, 60)!r}")
    return found[1], int(found[2]), found[3]


def _functions(task: Any) -> list[Any]:
    return [function for module in task.dispatched for _, function in module.functions_items()]


def _unpack(source: Path, folder: Path) -> None:
    """Raises UsageError: if the file is not one of ours, or of another TVM."""
    content: dict[str, Any] = {part: [] for part in _PARTS}
    if source.exists():
        content = _read(source)
    for part, name in _PARTS.items():
        lines = (json.dumps(entry) + "\n" for entry in content[part])
        (folder / name).write_text("".join(lines), encoding="utf-8")


def _read(source: Path) -> dict[str, Any]:
    name = clean(source.name, 80)
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} is no tuning file; give another, or one to be made") from error
    expected = {"format": _FORMAT, "tvm": version("apache-tvm")}
    found = {key: content.get(key) for key in expected} if isinstance(content, dict) else None
    if found != expected or not all(isinstance(content.get(part), list) for part in _PARTS):
        raise UsageError(f"{name} is no tuning file of TVM {expected['tvm']}; tune again")
    return content


def _pack(folder: Path, output: Path) -> None:
    content: dict[str, Any] = {"format": _FORMAT, "tvm": version("apache-tvm")}
    for part, name in _PARTS.items():
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        content[part] = [json.loads(line) for line in lines]
    with staging_folder(output) as staging:
        text = json.dumps(content, separators=(",", ":"))
        (staging / output.name).write_text(text, encoding="utf-8")
