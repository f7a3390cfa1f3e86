"""Targets: each is one folder here, or a plug-in of the entry-point group `tbn_compile.targets`."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from tbn_compile.errors import UsageError, clean

GROUP = "tbn_compile.targets"


class Target(Protocol):
    """What a lowered graph can be packaged for."""

    description: str
    """One line for lists of targets."""
    suffix: str
    """Ending of the artifact's default name, such as `.tbn.onnx`."""

    def package(self, model: ir.Model, output: Path) -> tuple[Path, ...]:
        """Write the artifact; either whole, or not at all.

        Returns:
            The files written: `output`, and others beside it if one does not hold everything.

        Raises:
            ModelError: if the model cannot be packaged or the artifact cannot be written.
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
    return installed[name].load()()


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
