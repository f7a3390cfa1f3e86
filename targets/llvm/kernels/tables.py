"""Tables of signed sums in vector registers, for the kernel of a Gemm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T


def table_parts(inputs: int, lanes: int) -> list[tuple[int, int, int]]:
    """(first code, codes, inputs of each) of whole tables, and of the last one if it is not."""
    whole, rest = divmod(inputs, group_of(lanes))
    parts = [(0, whole, group_of(lanes)), (whole, 1, rest)]
    return [part for part in parts if part[1] and part[2]]


def table(values: Sequence[Any], lanes: int) -> Any:
    """A vector of the sums that a code can name, half of them; the other half are the negatives.

    Bit j of an entry's number tells whether input j is added, or else taken off. The last of
    log2(lanes) + 1 inputs is added; inputs that are not there are zero.
    """
    last = group_of(lanes) - 1
    total: Any = T.broadcast(tirx.const(0.0, "float32"), lanes)
    for j, value in enumerate(values):
        signs = [1.0 if j == last or (entry >> j) & 1 else -1.0 for entry in range(lanes)]
        constants = [tirx.const(sign, "float32") for sign in signs]
        total = total + T.broadcast(value, lanes) * tirx.Shuffle(constants, list(range(lanes)))
    return total


def group_of(lanes: int) -> int:
    """Inputs of a table: half of their signed sums fill a vector."""
    return lanes.bit_length()
