"""Makes the modules of `examples/training` importable, as they are to its scripts."""

import sys
from pathlib import Path

import pytest
from helpers.missing import report_missing

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "training"))


@pytest.fixture
def installed_data() -> None:
    """Fashion-MNIST, without which a test cannot run."""
    from datasets.fashion_mnist import dataset

    if not dataset.FOLDER.exists():
        report_missing("needs the Debian package dataset-fashion-mnist")
