"""Package a lowered graph as a shared library for a CPU."""

from __future__ import annotations

from tbn_compile.files import staging_folder
from tbn_compile.targets import Package, Request


class LlvmTarget:
    """The CPU of this machine."""

    description = "shared library for this machine's CPU, run by TVM's runtime alone"
    suffix = ".so"
    options: frozenset[str] = frozenset()

    def __init__(self, _name: str = "llvm") -> None:
        pass

    def package(self, request: Request) -> Package:
        """Compile, write, and run what was written once beside ONNX Runtime.

        Raises:
            ModelError: if the model holds what cannot be compiled, the result computes something
                else, or it cannot be written.
            UsageError: if there is no C++ compiler.
        """
        from tbn_compile.targets.compiled.verification import verify_artifact  # noqa: PLC0415
        from tbn_compile.targets.llvm.compilation import compile_artifact  # noqa: PLC0415
        from tbn_compile.targets.llvm.processors import find_processor  # noqa: PLC0415

        processor = find_processor()
        content = compile_artifact(request.graph, request.source.name, processor)
        with staging_folder(request.output) as staging:
            written = staging / request.output.name
            written.write_bytes(content)
            verify_artifact(written, request.source, request.input_dims)
        details = {"processor": processor.name, "features": list(processor.features)}
        line = f"Code for {processor.name}: {', '.join(processor.features) or 'no extensions'}"
        return Package((request.output,), details, (line,))
