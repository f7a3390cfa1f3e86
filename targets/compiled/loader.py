"""Load an artifact and call it, with TVM's runtime alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import ml_dtypes
import numpy as np
import tvm
import tvm_ffi
from tvm.runtime.vm import VirtualMachine

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.targets.compiled.artifact import read_artifact
from tbn_compile.targets.compiled.cuda_device import (
    compute_capability,
    find_gpu,
    runs_on,
)
from tbn_compile.targets.compiled.manifest import Manifest, Processor, TensorSpec
from tbn_compile.targets.compiled.processor import architecture, present_features

_GPU_ALIGNMENT = 16
"""Bytes that kernels load at once."""


def load(path: str | Path) -> CompiledModel:
    """Load what target llvm or cuda wrote.

    Set `TVM_USE_RUNTIME_LIB=1` to keep TVM's compiler out of the process. Whether the file is whole
    and suits this machine is checked before anything in it runs; whoever made it is trusted.

    Raises:
        ModelError: if the file is missing, damaged, no artifact, or needs another machine.
    """
    source = Path(path)
    manifest, content = read_artifact(source)
    name = clean(source.name, 80)
    _check_processor(name, manifest.processor)
    device = tvm.cpu() if manifest.device == "cpu" else _find_gpu(name, manifest)
    return CompiledModel(manifest, _open_machine(name, device, content), device)


def _check_processor(name: str, needed: Processor) -> None:
    if needed.architecture != architecture():
        raise ModelError(
            f"{name} is code for {clean(needed.architecture, 40)}, and this machine is "
            f"{architecture()}; compile the model for it"
        )
    missing = sorted(set(needed.features) - present_features())
    if missing:
        listed = clean(", ".join(missing), 120)
        raise ModelError(
            f"{name} was compiled for {clean(needed.name, 40)}; this processor lacks {listed}; "
            f"compile the model for it"
        )


def _find_gpu(name: str, manifest: Manifest) -> Any:
    gpu = find_gpu()
    if gpu is None:
        raise ModelError(
            f"{name} needs an NVIDIA GPU; there is none, or no driver or CUDA 13 runtime for it "
            f"(`pip install tbn-compile[cuda]` has the latter)"
        )
    if not runs_on(gpu, manifest.cuda_architectures):
        listed = clean(", ".join(manifest.cuda_architectures), 80)
        raise ModelError(
            f"{name} has code for compute capability {listed}; this GPU's is "
            f"{compute_capability(gpu)}: compile the model with --cuda-arch"
        )
    return gpu


def _open_machine(name: str, device: Any, content: bytes) -> VirtualMachine:
    # A private copy: what is opened is what was checked, whatever becomes of the file meanwhile.
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "model.so"
        library.write_bytes(content)
        try:
            return VirtualMachine(tvm.runtime.load_module(str(library)), device)
        except Exception as error:  # TVM's errors have no common base
            raise ModelError(f"{name}: TVM cannot load it: {_last_line(error)}") from error


class CompiledModel:
    """A loaded artifact: call it like a function.

    Args:
        manifest: its description.
        machine: what executes it.
        device: where it executes.
    """

    def __init__(self, manifest: Manifest, machine: VirtualMachine, device: Any) -> None:
        self.manifest = manifest
        self.device = device
        self._is_apart = manifest.device != "cpu"
        self._inputs = [_Input(spec, device, self._is_apart) for spec in manifest.inputs]
        self._main = machine["main"]
        self._lock = Lock()  # the machine's registers serve one call at a time

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Like a call by name, with the outputs by name too."""
        results = self(**inputs)
        names = [spec.name for spec in self.manifest.outputs]
        return dict(zip(names, results if len(names) > 1 else [results], strict=True))

    def place(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The same inputs where the model runs: arrays are viewed on a CPU, copied to a GPU."""
        known = {expected.name: expected for expected in self._inputs}
        return {name: known[name].tensor(value) for name, value in inputs.items()}

    def __call__(self, *values: Any, **named: Any) -> Any:
        """Run once; nothing is copied but numpy arrays to a GPU and back.

        A GPU runs it on TVM's current stream, by default CUDA's default one, and the call returns
        before the work is done unless all inputs are numpy arrays.

        Args:
            *values: inputs in the model's order: numpy arrays or whatever speaks DLPack.
            **named: the same by name, in place of `values`.

        Returns:
            The output, or a tuple of several: numpy arrays if all inputs are, or else TVM tensors,
            which any DLPack library takes over (`torch.from_dlpack(output)`).

        Raises:
            UsageError: if an input is missing, unknown, or of another type, shape or device.
            ModelError: if the run fails.
        """
        inputs = self._in_order(values, named)
        extents: dict[str, int] = {}
        tensors = [
            expected.checked(value, extents)
            for expected, value in zip(self._inputs, inputs, strict=True)
        ]
        try:
            with self._lock:
                results = self._main(*tensors)
        except Exception as error:  # TVM's errors have no common base
            raise ModelError(f"the run failed: {_last_line(error)}") from error
        outputs = (results,) if isinstance(results, tvm_ffi.Tensor) else tuple(results)
        if all(isinstance(value, np.ndarray) for value in inputs):
            if self._is_apart:
                self.device.sync()
                outputs = tuple(output.copyto(tvm.cpu()) for output in outputs)
            outputs = tuple(_array(output) for output in outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _in_order(self, values: Sequence[Any], named: dict[str, Any]) -> Sequence[Any]:
        names = [expected.name for expected in self._inputs]
        if named and not values:
            if sorted(named) != sorted(names):
                raise UsageError(f"inputs {_listed(named)} were given; they are {_listed(names)}")
            return [named[name] for name in names]
        if named or len(values) != len(names):
            raise UsageError(f"give every input, in order or by name: {clean(str(names), 160)}")
        return values


class _Input:
    """What a call must give for one input: kept plain, because every call looks at it.

    Args:
        spec: from the manifest.
        device: where the model runs.
        is_apart: whether that has memory of its own.
    """

    def __init__(self, spec: TensorSpec, device: Any, is_apart: bool) -> None:
        self.name, self.shape = spec.name, spec.shape
        self.dtype, self.device = tvm_ffi.dtype(spec.dtype), device
        self.is_apart = is_apart

    def tensor(self, value: Any) -> Any:
        """The caller's memory, or a copy of an array where the model runs."""
        view = self._view(value)
        if not self.is_apart or not isinstance(value, np.ndarray):
            return view
        return tvm.runtime.empty(view.shape, view.dtype, self.device).copyfrom(view)

    def checked(self, value: Any, extents: dict[str, int]) -> Any:
        """Likewise; the extents that named dimensions stand for are noted."""
        tensor = self.tensor(value)
        if tensor.dtype != self.dtype:
            raise UsageError(f"{self._told()}, not {tensor.dtype}")
        if tensor.device != self.device:
            raise UsageError(f"{self._told()} on {self.device}, not on {tensor.device}")
        if not _fits(self.shape, tensor.shape, extents):
            bound = ", ".join(f"{clean(key, 40)}={extent}" for key, extent in extents.items())
            given = tuple(map(int, tensor.shape))
            raise UsageError(f"{self._told()}, not {given}{f' with {bound}' if bound else ''}")
        if self.is_apart and tensor.data_ptr() % _GPU_ALIGNMENT:
            raise UsageError(
                f"input {clean(self.name, 60)!r} must start at a multiple of {_GPU_ALIGNMENT} "
                f"bytes on a GPU; give a copy of the slice"
            )
        return tensor

    def _view(self, value: Any) -> Any:
        # DLPack in numpy lacks bfloat16.
        narrow = isinstance(value, np.ndarray) and value.dtype == ml_dtypes.bfloat16
        source = value.view(np.uint16) if narrow else value
        try:
            view: Any = tvm_ffi.from_dlpack(source, require_alignment=0, require_contiguous=True)
        except Exception as error:  # each library has errors of its own
            raise UsageError(
                f"input {clean(self.name, 60)!r}: give a writable, contiguous array or DLPack "
                f"tensor ({_last_line(error)})"
            ) from error
        return view._create_view(view.shape, "bfloat16") if narrow else view

    def _told(self) -> str:
        shape = ", ".join(clean(extent, 40) for extent in self.shape)
        return f"input {clean(self.name, 60)!r} must be {self.dtype} ({shape})"


def _fits(shape: Sequence[int | str], given: Sequence[int], extents: dict[str, int]) -> bool:
    """Whether a shape fits; the extents that its names stand for are noted."""
    if len(shape) != len(given) or min(given, default=1) < 1:
        return False
    return all(
        extent == (extents.setdefault(known, extent) if isinstance(known, str) else known)
        for known, extent in zip(shape, given, strict=True)
    )


def _array(tensor: Any) -> Any:
    """A numpy view of the memory of a tensor on the CPU."""
    if str(tensor.dtype) != "bfloat16":
        return np.from_dlpack(tensor)
    return np.from_dlpack(tensor._create_view(tensor.shape, "uint16")).view(ml_dtypes.bfloat16)


def _listed(names: Any) -> str:
    return clean(", ".join(sorted(names)) or "none", 160)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return clean(lines[-1] if lines else type(error).__name__, 160)
