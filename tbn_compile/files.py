"""Write files whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tbn_compile.errors import ModelError, clean


@contextmanager
def staging_folder(output: Path) -> Generator[Path]:
    """A temporary folder beside `output`; what it holds at the end replaces what was there.

    If the body raises, the folder is removed and nothing beside it changes.

    Raises:
        ModelError: if the folder of `output` does not exist or cannot be written.
    """
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{output.name[:80]}.", dir=output.parent))
    except OSError as error:
        raise ModelError(
            f"cannot write {clean(output, 200)}: {error.strerror}; choose another output"
        ) from error
    try:
        yield staging
        for part in sorted(staging.iterdir(), reverse=True):
            os.replace(part, output.parent / part.name)
    except OSError as error:
        raise ModelError(f"cannot write {clean(output, 200)}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
