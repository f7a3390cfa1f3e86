"""Makes the modules of `examples/training` importable, as they are to its scripts."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "training"))


@pytest.fixture
def installed_data() -> None:
    """Fashion-MNIST, without which a test cannot run."""
    from datasets.fashion_mnist import dataset

    if dataset.FOLDER.exists():
        return
    message = "needs the Debian package dataset-fashion-mnist"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
