"""Does what TVM understood compute what the model computes? Asked before any C is written."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tbn_compile.errors import ModelError
from tbn_compile.targets.mcu.program import Sample
from tbn_compile.targets.relax_import import agrees, legalize_take

_TOLERANCES = {False: 1e-3, True: 0.05}
"""Share of the largest magnitude by whether the graph is quantised: rounding stays below it."""


def verify_import(module: Any, sample: Sample, *, is_quantized: bool) -> None:
    """Run a module's `main` on this machine and compare with ONNX Runtime's outputs.

    TVM's ONNX frontend passes over some attributes and optional outputs in silence.

    Args:
        module: what `to_relax` gave.
        sample: inputs and ONNX Runtime's outputs.
        is_quantized: whether rounding to integers may move values by whole steps.

    Raises:
        ModelError: if an output has another shape, type or value; the text names it by its place.
    """
    safe = relax.transform.LegalizeOps({"relax.take": legalize_take})(module)
    executable = tvm.compile(safe, target="llvm")
    machine = relax.VirtualMachine(executable, tvm.cpu())
    results = machine["main"](*[tvm.runtime.tensor(array) for array in sample.inputs])
    arrays = [results] if isinstance(results, tvm.runtime.Tensor) else list(results)
    if len(arrays) != len(sample.outputs):
        raise ModelError(f"TVM gives {len(arrays)} outputs in the place of {len(sample.outputs)}")
    for index, (array, reference) in enumerate(zip(arrays, sample.outputs, strict=True)):
        if not agrees(array.numpy(), reference, _TOLERANCES[is_quantized]):
            raise ModelError(
                f"TVM reads the graph otherwise than ONNX Runtime: output {index} differs; an "
                f"operator on its way has an attribute or optional output that TVM passes over"
            )
