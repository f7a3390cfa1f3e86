"""Targets: each is one folder here, or a plug-in of the entry-point group `tbn_compile.targets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir

from tbn_compile.errors import UsageError, clean

if TYPE_CHECKING:
    from tbn_compile.pipeline import ProgressCallback

GROUP = "tbn_compile.targets"


@dataclass(frozen=True)
class Tuning:
    """A search for schedules, and the file that keeps what it found.

    Attributes:
        file: read if it exists, and extended by a search.
        trials: how many variants to measure; 0: none, the file alone counts.
        tracker: HOST:PORT/KEY of TVM's RPC tracker for a remote device, or None: this machine.
    """

    file: Path
    trials: int = 0
    tracker: str | None = None


@dataclass(frozen=True)
class Request:
    """What a target is to package.

    Attributes:
        graph: the lowered graph.
        source: the original model's file, checked.
        output: where the artifact goes.
        input_dims: extents that were given for symbolic dimensions.
        optimize: what kernels spend, RAM or time, or None for the target's default.
        board: name or file of a board that the artifact must fit, or None.
        cpu: LLVM's name of the processor, or None: this machine's.
        cuda_arch: compute capabilities such as "90", or None for the target's default.
        tuning: schedules to search or to use, or None.
        progress: called as steps of long work begin, or None.
    """

    graph: ir.Model
    source: Path
    output: Path
    input_dims: Mapping[str, int] = field(default_factory=dict)
    optimize: str | None = None
    board: str | None = None
    cpu: str | None = None
    cuda_arch: tuple[str, ...] | None = None
    tuning: Tuning | None = None
    progress: ProgressCallback | None = None

    def report(self, step: str, done: int, total: int) -> None:
        """Say that a step of the packaging begins, after `done` of `total` steps."""
        if self.progress is not None:
            self.progress(step, done, total)


@dataclass(frozen=True)
class Package:
    """What a target wrote.

    Attributes:
        files: the artifact, and others beside it if one does not hold everything.
        details: what the target tells about it, JSON-ready.
        lines: the same for a terminal, printable.
    """

    files: tuple[Path, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


class Target(Protocol):
    """What a lowered graph can be packaged for. Entry points name a callable `(name) -> Target`."""

    description: str
    """One line for lists of targets."""
    suffix: str
    """Ending of the artifact's default name, such as `.tbn.onnx`."""
    options: frozenset[str]
    """The optional fields of `Request` that it understands; others are refused before the work."""

    def package(self, request: Request) -> Package:
        """Write the artifact; either whole, or not at all.

        Raises:
            ModelError: if the model cannot be packaged or the artifact cannot be written.
            UsageError: if an option has no valid meaning.
        """
        ...


def target_names() -> list[str]:
    """The installed targets' names, sorted."""
    return sorted(_installed())


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: if there is none; the text lists those there are.
    """
    installed = _installed()
    if name not in installed:
        known = ", ".join(sorted(installed)) or "none"
        raise UsageError(f"unknown target {clean(name, 40)!r}; installed targets: {known}")
    target: Target = installed[name].load()(name)
    return target


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
