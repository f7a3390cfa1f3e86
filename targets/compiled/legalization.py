"""TIR for operators whose meaning in TVM differs from ONNX's."""

from __future__ import annotations

from typing import Any

from tvm import topi

from tbn_compile.targets.relax_import import legalize_take


def _batch_norm(builder: Any, call: Any) -> Any:
    """Computed in float32, rounded once; TVM would leave what comes of narrower types so."""
    kind, fields = str(call.args[0].ty.dtype), ("axis", "epsilon", "center", "scale")
    attributes = {field: call.attrs[field] for field in (*fields, "momentum", "training")}

    def normalise(*tensors: Any) -> list[Any]:
        wide = [topi.cast(tensor, "float32") for tensor in tensors]
        return [topi.cast(each, kind) for each in topi.nn.batch_norm(*wide, **attributes)]

    return builder.call_te(normalise, *call.args, primfunc_name_hint="batch_norm")


LEGALIZATIONS = {"relax.nn.batch_norm": _batch_norm, "relax.take": legalize_take}
"""For `relax.transform.LegalizeOps`."""
