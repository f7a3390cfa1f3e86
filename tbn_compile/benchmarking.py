"""Time a compiled artifact beside its original, in turns within one process."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tbn_compile.compiler import CompileOptions, compile_model
from tbn_compile.errors import UsageError
from tbn_compile.library import get_library_path
from tbn_compile.loading import model_files, total_bytes
from tbn_compile.pipeline import ProgressCallback
from tbn_compile.sessions import Session, check_model, known_dims, random_inputs

SCHEMA_VERSION = 1
ORIGINAL = "original"
"""Name of the contender that the others are compared with."""
_WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of one inference.

    Attributes:
        name: "original", "library" (artifact with our library), "stock" (artifact without), or the
            target of a compiled library.
        p5, p50, p95: percentiles over the rounds.
        speedup: the median over rounds of the original's time divided by this one's.
    """

    name: str
    p5: float
    p50: float
    p95: float
    speedup: float


@dataclass(frozen=True)
class BenchmarkReport:
    """Times and sizes of a model and its artifact.

    Attributes:
        model, artifact: the files' names.
        original_bytes, artifact_bytes: the files with their external data.
        threads: threads of one operator.
        rounds: inferences of each contender that were timed.
        timings: the original first.
    """

    model: str
    artifact: str
    original_bytes: int
    artifact_bytes: int
    threads: int
    rounds: int
    timings: tuple[Timing, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data, with `schema_version`."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


def benchmark_model(
    model: str | Path,
    artifact: str | Path | None = None,
    *,
    stock: bool = False,
    threads: int = 1,
    runs: int = 200,
    seconds: float = 10.0,
    seed: int = 0,
    input_dims: Mapping[str, int] | None = None,
    progress: ProgressCallback | None = None,
) -> BenchmarkReport:
    """Time the original in stock ONNX Runtime and the artifact with our library.

    After a warm-up the contenders run in turns, so that the machine's moods meet all alike.

    Args:
        model: the original `.onnx` file.
        artifact: what target `ort` made of it; None compiles it into a temporary folder.
        stock: also time the artifact without our library.
        threads: threads of one operator.
        runs: the most rounds.
        seconds: no round starts after this time, except the first.
        seed: of the random inputs.
        input_dims: extents for symbolic dimensions; others are 1, or as the artifact pins them.
        progress: called as the rounds go on, or None.

    Raises:
        ModelError: if a file is unsafe or invalid, or ONNX Runtime cannot run it.
        UsageError: if our library is not installed, or an option does not fit the model.
    """
    check_limits(threads, runs, seconds)
    library = get_library_path()
    with _artifact_file(Path(model), artifact, input_dims) as compiled_file:
        original, compiled = check_model(model), check_model(compiled_file)
        feeds = random_inputs(
            original, seed, known_dims(original, compiled.input_shapes, input_dims or {})
        )
        sessions = {
            ORIGINAL: Session(original, threads=threads),
            "library": Session(compiled, library, threads),
            **({"stock": Session(compiled, threads=threads)} if stock else {}),
        }
        contenders = {name: partial(each.run_raw, feeds) for name, each in sessions.items()}
        times = time_in_turns(contenders, runs, seconds, progress)
        return BenchmarkReport(
            model=original.path.name,
            artifact=compiled.path.name,
            original_bytes=total_bytes(model_files(original.path, original.graph)),
            artifact_bytes=total_bytes(model_files(compiled.path, compiled.graph)),
            threads=threads,
            rounds=len(times[ORIGINAL]),
            timings=summarize(times),
        )


@contextmanager
def _artifact_file(
    model: Path, artifact: str | Path | None, input_dims: Mapping[str, int] | None
) -> Generator[Path]:
    if artifact is not None:
        yield Path(artifact)
        return
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"{model.stem[:80]}.tbn.onnx"
        compile_model(model, "ort", output, CompileOptions(input_dims))
        yield output


def check_limits(threads: int, runs: int, seconds: float) -> None:
    """Refuse limits of a benchmark that have no meaning.

    Raises:
        UsageError: with the mend.
    """
    if threads < 1 or runs < 1 or not seconds > 0:
        raise UsageError("threads and runs must be 1 or more, and seconds more than 0")


def time_in_turns(
    contenders: Mapping[str, Callable[[], object]],
    runs: int,
    seconds: float,
    progress: ProgressCallback | None,
) -> dict[str, list[float]]:
    """Time one inference of each contender, round after round.

    Args:
        contenders: what runs one inference, by name.
        runs: the most rounds.
        seconds: no round starts after this time, except the first.
        progress: called as the rounds go on, or None.

    Returns:
        Seconds by name and round.
    """
    for _ in range(_WARM_UP_ROUNDS):
        for run in contenders.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    deadline = time.perf_counter() + seconds
    for done in range(1, runs + 1):
        for name, run in contenders.items():
            times[name].append(_seconds_of(run))
        if progress is not None:
            progress("benchmark", done, runs)
        if time.perf_counter() > deadline:
            break
    return times


def summarize(times: Mapping[str, list[float]]) -> tuple[Timing, ...]:
    """The timings of every contender, `ORIGINAL` among them, in their order."""
    return tuple(_timing(name, times) for name in times)


def _seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _timing(name: str, times: Mapping[str, list[float]]) -> Timing:
    mine, original = np.asarray(times[name]), np.asarray(times[ORIGINAL])
    p5, p50, p95 = (float(value) for value in np.percentile(mine, (5, 50, 95)))
    return Timing(name, p5, p50, p95, float(np.median(original / mine)))
