"""The file that keeps schedules which a search found.

JSON: for each function, by the hash of its TIR, and each processor the steps of the fastest
schedule. Steps are checked before TVM sees them, because it trusts them: only those are taken that
a search makes, with arguments of the right kinds. So a file cannot bring code along.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tbn_compile.errors import UsageError, clean
from tbn_compile.files import staging_folder

_FORMAT = 1
_LARGEST_FILE = 64 << 20
_LARGEST_INTEGER = 2**31 - 1
_ANNOTATIONS = re.compile(
    r"meta_schedule\.\w+|schedule_rule|software_pipeline_(stage|order|async_stages)"
    r"|pragma_(auto_unroll_max_step|unroll_explicit)"
)
_REFERENCE = re.compile(r"[blv]\d{1,6}")
_STEPS = {
    "AddUnitLoop": "[bl]//l",
    "Annotate": r"[bl]([vis]|\[i+\])/s/",
    "Bind": "l/s/",
    "CacheRead": r"b\[b*\]/is/b",
    "CacheWrite": r"b\[b*\]/is/b",
    "ComputeAt": "bl/ii/",
    "ComputeInline": "b//",
    "DecomposeReduction": "bl//b",
    "EnterPostproc": "//",
    "Fuse": "l+/i/l",
    "GetChildBlocks": "[bl]//b*",
    "GetConsumers": "b//b*",
    "GetLoops": "b//l*",
    "GetProducers": "b//b*",
    "GetSBlock": "/ss/b",
    "RFactor": "l/i/b",
    "Reorder": "l+//",
    "ReverseComputeAt": "bl/ii/",
    "ReverseComputeInline": "b//",
    "SampleCategorical": r"/\[i+\]\[f+\]/v",
    "SampleComputeLocation": "b//l",
    "SamplePerfectTile": "l/ii/v+",
    "SetScope": "b/is/",
    "Split": "l[vin]+/ii/l+",
    "Unannotate": "[bl]/s/",
    "Unroll": "l//",
    "Vectorize": "l//",
}
"""Kinds of inputs/attributes/outputs: block, loop, value, integer, float, string, "None"."""


@dataclass(frozen=True)
class Found:
    """The fastest schedule of a function on a processor.

    Attributes:
        function: SHA-256 of its TIR, hexadecimal.
        target: TVM's description of the processor, JSON.
        name: the function's.
        seconds: one call took, the mean.
        steps: the schedule's, as TVM writes a trace: instructions, and decisions by their index.
    """

    function: str
    target: str
    name: str
    seconds: float
    steps: list[Any]

    def __post_init__(self) -> None:
        """Raises ValueError: if time or steps are none that a search gives."""
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(self.seconds)
        check_steps(self.steps)


@dataclass(frozen=True)
class Search:
    """What a search measured.

    Attributes:
        target: TVM's description of the processor, JSON.
        functions: how many were searched.
        scheduled: how many of them have a schedule.
        variants: how many were measured, or failed.
        failed: how many of them did not build or run.
        first_failure: the last line of what the first of them said, or "".
        ranked_by: the cost model that picked variants to measure.
    """

    target: str
    functions: int
    scheduled: int
    variants: int
    failed: int
    first_failure: str
    ranked_by: str


@dataclass(frozen=True)
class TuningFile:
    """The content of a tuning file.

    Attributes:
        schedules: one for each function and processor.
        searches: that they come from, oldest first.
    """

    schedules: tuple[Found, ...] = ()
    searches: tuple[Search, ...] = ()

    def schedules_for(self, target: str) -> dict[str, Found]:
        """The schedules for a processor, by the function's hash."""
        return {each.function: each for each in self.schedules if each.target == target}

    def with_search(self, search: Search, found: Sequence[Found]) -> TuningFile:
        """This and a search more; of two schedules for the same the faster one stays."""
        fastest: dict[tuple[str, str], Found] = {}
        for each in sorted((*self.schedules, *found), key=lambda each: each.seconds):
            fastest.setdefault((each.function, each.target), each)
        return TuningFile(tuple(fastest.values()), (*self.searches, search))


def read_tuning(file: Path) -> TuningFile:
    """Read a tuning file; one that does not exist is empty.

    Raises:
        UsageError: if it is not one of ours, or of another TVM.
    """
    if not file.exists():
        return TuningFile()
    name = clean(file.name, 80)
    try:
        content = _load(file)
        made_by = (content["format"], content["tvm"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UsageError(f"{name} is no tuning file; name another, or one to be made") from error
    if made_by != (_FORMAT, _tvm()):
        made = clean(made_by[1], 40)
        raise UsageError(f"{name} was made with TVM {made}, this is {_tvm()}; tune to a new file")
    try:
        schedules = tuple(_entry(Found, each) for each in content["schedules"])
        searches = tuple(_entry(Search, each) for each in content["searches"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UsageError(f"{name} is damaged; tune to a new file") from error
    return TuningFile(schedules, searches)


def write_tuning(content: TuningFile, output: Path) -> None:
    """Write a tuning file in place of what was there.

    Raises:
        ModelError: if it cannot be written.
    """
    text = json.dumps({"format": _FORMAT, "tvm": _tvm(), **asdict(content)}, separators=(",", ":"))
    with staging_folder(output) as staging:
        (staging / output.name).write_text(text + "\n", encoding="utf-8")


def check_steps(steps: Any) -> None:
    """Raises ValueError, TypeError: if a trace holds what no search makes."""
    instructions, decisions = steps
    known: set[str] = set()
    for instruction in instructions:
        name, inputs, attributes, outputs = instruction
        if not known.issuperset(_references(inputs)):
            raise ValueError(instruction)
        signature = f"{_kinds(inputs)}/{_kinds(attributes)}/{_kinds(outputs)}"
        if name not in _STEPS or not re.fullmatch(_STEPS[name], signature):
            raise ValueError(instruction)
        if "nnotate" in name and not _ANNOTATIONS.fullmatch(attributes[0]):
            raise ValueError(instruction)
        known.update(outputs)
    for index, decision in decisions:
        _check_decision(instructions, index, decision)


def _check_decision(instructions: Any, index: Any, decision: Any) -> None:
    if _kinds([index]) != "i" or not 0 <= index < len(instructions):
        raise ValueError(index)
    name, _, attributes, outputs = instructions[index]
    if name == "SamplePerfectTile":
        kinds, least = f"[{'i' * len(outputs)}]", 1
        largest = _LARGEST_INTEGER
    elif name == "SampleCategorical":
        kinds, least, largest = "i", 0, len(attributes[0]) - 1
    else:
        kinds, least, largest = "i", -2, _LARGEST_INTEGER
    values = decision if isinstance(decision, list) else [decision]
    if _kinds([decision]) != kinds or min(values) < least or math.prod(values) > largest:
        raise ValueError(decision)


def _kinds(values: list[Any]) -> str:
    return "".join(map(_kind, values))


def _kind(value: Any) -> str:
    if value == "None":
        return "n"
    if isinstance(value, int) and abs(value) <= _LARGEST_INTEGER:
        return "i"
    if isinstance(value, float) and math.isfinite(value):
        return "f"
    if isinstance(value, list):
        return f"[{_kinds(value)}]"
    if not isinstance(value, str):
        raise TypeError(value)
    return value[0] if _is_reference(value) else "s"


def _references(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, list):
            yield from _references(value)
        elif _is_reference(value):
            yield value


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def _load(file: Path) -> Any:
    if not file.is_file() or file.stat().st_size > _LARGEST_FILE:
        raise ValueError(file)
    return json.loads(file.read_text(encoding="utf-8"))


def _entry(kind: Any, values: Any) -> Any:
    """Raises TypeError, ValueError: if JSON does not hold the fields of a dataclass."""
    types = {"str": str, "int": int, "float": float, "list[Any]": list}
    for field in fields(kind):
        if not isinstance(values[field.name], types[str(field.type)]):
            raise TypeError(field.name)
    return kind(**values)


def _tvm() -> str:
    return version("apache-tvm")
