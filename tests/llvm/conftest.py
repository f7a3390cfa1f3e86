"""Makes the layers of `tests/runtime` importable: the same cases run through every backend."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
