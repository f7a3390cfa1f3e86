"""The tools that native tests need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Build = Callable[..., Path]
"""Configures and builds the repository's native code: `build(name, *cmake_options)` -> folder."""


def require_tools(*tools: str) -> None:
    """Skip the test, or fail it in CI, unless every tool is on the path."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if not missing:
        return
    message = f"missing tools: {', '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
