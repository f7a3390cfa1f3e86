"""TIR for operators whose meaning in TVM differs from ONNX's."""

from __future__ import annotations

from typing import Any

from tvm import topi


def _take(builder: Any, call: Any) -> Any:
    """Negative indices count from the end, and none reads outside of the tensor."""
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    return builder.call_te(topi.take, call.args[0], call.args[1], axis, mode="wrap")


LEGALIZATIONS = {"relax.take": _take}
"""For `relax.transform.LegalizeOps`."""
