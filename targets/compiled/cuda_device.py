"""The GPU of this machine, as TVM's runtime sees it."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi


def find_gpu() -> Any:
    """TVM's device of the first GPU, or None: there is none, or no driver for it."""
    _load_runtime()
    device = tvm.cuda()
    return device if device.exist else None


def compute_capability(device: Any) -> str:
    """Of a GPU, such as "90"."""
    return str(device.compute_version).replace(".", "")


def runs_on(device: Any, architectures: Sequence[str]) -> bool:
    """Whether a GPU runs code for these architectures, or the PTX of the highest of them."""
    capability = int(compute_capability(device))
    known = [int(name.rstrip("a")) for name in architectures]
    same = any(name // 10 == capability // 10 and name <= capability for name in known)
    return same or max(known, default=capability + 1) <= capability


@cache
def _load_runtime() -> None:
    """Load TVM's part for CUDA, which `import tvm` leaves out if it is the runtime alone.

    What it links to is opened first: libcudart may lie in a package that no loader looks into.
    """
    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is not None:
        return
    spec = importlib.util.find_spec("nvidia")
    folders = map(Path, (spec.submodule_search_locations or ()) if spec else ())
    packaged = [path for folder in folders for path in folder.glob("*/lib/libcudart.so.*")]
    library = Path(tvm.__file__).with_name("lib") / "libtvm_runtime_cuda.so"
    for path in (*packaged, library):
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:  # no driver, or no CUDA runtime
            continue
