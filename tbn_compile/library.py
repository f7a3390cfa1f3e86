"""Where the installed ONNX Runtime library lies."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from tbn_compile.errors import UsageError

_SUFFIXES = {"darwin": ".dylib", "win32": ".dll"}


def get_library_path() -> str:
    """The path of the custom-operator library, for `SessionOptions.register_custom_ops_library`.

    Raises:
        UsageError: if the package was installed without it.
    """
    name = f"libtbn_ort{_SUFFIXES.get(sys.platform, '.so')}"
    for root in _installed_folders():
        library = root / "lib" / name
        if library.is_file():
            return str(library)
    raise UsageError(f"{name} is not installed; install tbn-compile from a wheel, or build it")


def _installed_folders() -> list[Path]:
    """The package's folders: an editable install keeps native code apart from the sources."""
    package = files("tbn_compile")
    roots = getattr(package, "_paths", [package])
    return [Path(str(root)) for root in roots]
