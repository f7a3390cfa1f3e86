"""Package a lowered graph as a shared library for NVIDIA GPUs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tbn_compile.files import staging_folder
from tbn_compile.targets import Package, Request


class CudaTarget:
    """GPUs of compute capability 8.0 and newer."""

    description = "shared library with machine code for NVIDIA GPUs, run by TVM's runtime alone"
    suffix = ".so"
    options = frozenset({"cuda_arch", "tuning"})

    def __init__(self, _name: str = "cuda") -> None:
        pass

    def package(self, request: Request) -> Package:
        """Compile and write; run it once beside ONNX Runtime, on this machine's GPU if it has one.

        Without a GPU the graph's meaning is checked on the CPU, and the kernels are not run.

        Raises:
            ModelError: if the model holds what cannot be compiled, the result computes something
                else, or it cannot be written.
            UsageError: if an architecture is unknown, or there is no C++ or CUDA compiler.
        """
        from tbn_compile.targets.compiled.tuning import check_tuning, tuning_lines  # noqa: PLC0415
        from tbn_compile.targets.compiled.verification import NOT_COMPARED  # noqa: PLC0415
        from tbn_compile.targets.cuda.artifact import compile_artifact  # noqa: PLC0415
        from tbn_compile.targets.cuda.compilation import compiler_name  # noqa: PLC0415

        architectures = _architectures(request.cuda_arch)
        compiler_name()  # fail before the work, not after it
        check_tuning(request.tuning, gpu=True)
        request.report("compile", 0, 2)
        compiled = compile_artifact(
            request.graph, request.source.name, architectures, request.tuning
        )
        request.report("check", 1, 2)
        with staging_folder(request.output) as staging:
            written = staging / request.output.name
            written.write_bytes(compiled.content)
            checked = _verify(written, request, architectures)
        details = {
            "cuda_architectures": list(architectures),
            "checked_on": checked,
            "portable_layers": compiled.portable_layers,
        }
        listed = ", ".join(architectures)
        lines = [f"Machine code for compute capability {listed}, and PTX", *compiled.lines]
        lines.extend(tuning_lines(request.tuning))
        if checked == "cpu":
            lines.append(
                "Not run: no GPU here for this code. The graph was checked on the CPU; validate "
                "the artifact with tbn-validate on a machine that has one"
            )
        if checked is None:
            lines.append(NOT_COMPARED)
        return Package((request.output,), details, tuple(lines))


def _architectures(names: Sequence[str] | None) -> tuple[str, ...]:
    """Those asked for, or this machine's GPU's, or a usual set."""
    from tbn_compile.targets.compiled.cuda_device import (  # noqa: PLC0415
        compute_capability,
        find_gpu,
    )
    from tbn_compile.targets.cuda.compilation import (  # noqa: PLC0415
        ARCHITECTURES,
        DEFAULT_ARCHITECTURES,
        check_architectures,
    )

    if names is not None:
        return check_architectures(names)
    gpu = find_gpu()
    own = compute_capability(gpu) if gpu is not None else None
    return (own,) if own in ARCHITECTURES else DEFAULT_ARCHITECTURES


def _verify(artifact: Path, request: Request, architectures: tuple[str, ...]) -> str | None:
    """Where what was compiled ran beside ONNX Runtime: "cuda", "cpu", or None: nowhere."""
    from tbn_compile.targets.compiled.cuda_device import find_gpu, runs_on  # noqa: PLC0415
    from tbn_compile.targets.compiled.llvm_processors import find_processor  # noqa: PLC0415
    from tbn_compile.targets.compiled.verification import verify_artifact  # noqa: PLC0415
    from tbn_compile.targets.llvm.compilation import compile_artifact  # noqa: PLC0415

    gpu = find_gpu()
    if gpu is not None and runs_on(gpu, architectures):
        return "cuda" if verify_artifact(artifact, request.source, request.input_dims) else None
    compiled = compile_artifact(request.graph, request.source.name, find_processor())
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / artifact.name
        twin.write_bytes(compiled.content)
        return "cpu" if verify_artifact(twin, request.source, request.input_dims) else None
