"""Generated pages are those that the code makes; `make docs` renews them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


@pytest.mark.parametrize("name", ["TiledBinaryGemm.md", "TiledBinaryConv.md"])
def test_page_is_current(name):
    page = ROOT / "docs" / "operators" / name
    assert page.read_text(encoding="utf-8") == _pages()[name], "run `make docs`"


def test_every_operator_has_a_page():
    assert sorted(_pages()) == sorted(p.name for p in (ROOT / "docs" / "operators").iterdir())
