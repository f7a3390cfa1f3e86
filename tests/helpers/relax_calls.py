"""What a Relax module calls."""

import tvm  # noqa: TID251
from tvm import relax  # noqa: TID251


def operators(module):
    """What `main` calls, in order: operator names, and names of kernels for `call_tir`."""
    names = []

    def visit(expression):
        if isinstance(expression, relax.Call) and isinstance(expression.op, tvm.ir.Op):
            name = expression.op.name
            names.append(expression.args[0].name_hint if name == "relax.call_tir" else name)

    relax.analysis.post_order_visit(module["main"], visit)
    return names
