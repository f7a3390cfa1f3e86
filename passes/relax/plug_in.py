"""What `import tvm` loads through the entry-point group `tvm.backends`."""

from __future__ import annotations


def register() -> None:
    """Make TVM understand `ai.tbn`: operators, legalisation, `from_onnx`. Idempotent.

    Does nothing where only TVM's runtime is loaded: that runs what was compiled elsewhere.
    """
    from tvm import base  # noqa: PLC0415

    if base._RUNTIME_ONLY:
        return
    # Importing the lowering registers the operators and their legalisation.
    from tbn_compile.passes.relax import lower_tiled_calls, onnx_import  # noqa: F401, PLC0415

    onnx_import.extend_frontend()
