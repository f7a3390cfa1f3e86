"""Write the golden files of this folder anew.

Usage: python tests/mcu/golden/renew.py
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
TIME = 1_700_000_000


def texts() -> dict[str, str]:
    """Every golden file: name to text."""
    from helpers.mcu_program import SMALL_PROGRAM

    from tbn_compile.targets.mcu.archive.metadata import write_metadata
    from tbn_compile.targets.mcu.archive.self_test import SOURCE, self_test_sources

    return {
        "metadata.json": write_metadata(SMALL_PROGRAM, TIME),
        SOURCE: self_test_sources(SMALL_PROGRAM)[SOURCE],
    }


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parents[1]))
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
