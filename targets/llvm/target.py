"""Package a lowered graph as a shared library for a CPU."""

from __future__ import annotations

from tbn_compile.files import staging_folder
from tbn_compile.targets import Package, Request


class LlvmTarget:
    """A CPU of this machine's architecture."""

    description = "shared library for a CPU, by default this machine's, run by TVM's runtime alone"
    suffix = ".so"
    options = frozenset({"cpu", "tuning"})

    def __init__(self, _name: str = "llvm") -> None:
        pass

    def package(self, request: Request) -> Package:
        """Compile, write, and run what was written once beside ONNX Runtime.

        Code that needs more than this machine has cannot be run here; the package says so.

        Raises:
            ModelError: if the model holds what cannot be compiled, the result computes something
                else, or it cannot be written.
            UsageError: if there is no such processor, or no C++ compiler.
        """
        from tbn_compile.targets.compiled.llvm_processors import (  # noqa: PLC0415
            NATIVE,
            find_processor,
            missing_features,
        )
        from tbn_compile.targets.compiled.tuning import check_tuning, tuning_lines  # noqa: PLC0415
        from tbn_compile.targets.compiled.verification import (  # noqa: PLC0415
            NOT_COMPARED,
            verify_artifact,
        )
        from tbn_compile.targets.llvm.compilation import compile_artifact  # noqa: PLC0415

        processor = find_processor(request.cpu or NATIVE)
        missing = missing_features(processor)
        check_tuning(request.tuning)
        request.report("compile", 0, 2)
        compiled = compile_artifact(request.graph, request.source.name, processor, request.tuning)
        request.report("check", 1, 2)
        with staging_folder(request.output) as staging:
            written = staging / request.output.name
            written.write_bytes(compiled.content)
            verified = not missing and verify_artifact(written, request.source, request.input_dims)
        details = {
            "processor": processor.name,
            "features": list(processor.features),
            "verified": verified,
            "portable_layers": compiled.portable_layers,
        }
        features = ", ".join(processor.features) or "no extensions"
        lines = [f"Code for {processor.name}: {features}", *compiled.lines]
        lines.extend(tuning_lines(request.tuning))
        if missing:
            lines.append(
                f"Not run here, because this machine lacks {', '.join(missing)}: "
                f"validate it with tbn-validate on one that has them"
            )
        elif not verified:
            lines.append(NOT_COMPARED)
        return Package((request.output,), details, tuple(lines))
