"""The tools that native tests need."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from helpers.missing import report_missing

Build = Callable[..., Path]
"""Configures and builds the repository's native code: `build(name, *cmake_options)` -> folder."""


def require_tools(*tools: str) -> None:
    """Skip the test, or fail it in CI, unless every tool is on the path."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        report_missing(f"missing tools: {', '.join(missing)}")
