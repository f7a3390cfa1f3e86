"""Makes the modules of `examples/training` importable, as they are to its scripts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "training"))
