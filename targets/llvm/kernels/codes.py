"""Signs as the kernels for convolutions read them: numbers of table entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tbn_compile.passes.relax.distinct_rows import DistinctRows
from tbn_compile.targets.llvm.kernels.packing import WORD_BITS

_MOST_UNROLLED = 32


@dataclass(frozen=True)
class CodeLayout:
    """How the codes of a convolution's distinct rows are ordered.

    A table serves `inputs` channels; bit j of an entry's number tells whether channel j is added or
    else taken off. A chunk is what `tables` tables serve. In a chunk the first axes of the kernel
    are loops of their own; the codes for each of their taps are counted by the other axes and then
    the tables, and lie in words of 32 bits, the first lowest.

    Attributes:
        channels: of a group.
        kernel: the weight's spatial extents.
        inputs: of a table.
        tables: of a chunk.
    """

    channels: int
    kernel: tuple[int, ...]
    inputs: int
    tables: int

    @property
    def chunks(self) -> int:
        """Chunks of a group's channels; the last one may have fewer."""
        return -(-self.channels // (self.inputs * self.tables))

    @property
    def outer(self) -> tuple[int, ...]:
        """The axes of the kernel that are loops."""
        count = next(
            n
            for n in range(len(self.kernel) + 1)
            if n == len(self.kernel) or prod(self.kernel[n:]) * self.tables <= _MOST_UNROLLED
        )
        return self.kernel[:count]

    @property
    def inner(self) -> tuple[int, ...]:
        """The extents that count the codes of a tap of the outer axes."""
        return (*self.kernel[len(self.outer) :], self.tables)

    @property
    def codes_per_word(self) -> int:
        """Codes in a word."""
        return WORD_BITS // self.inputs

    @property
    def words(self) -> int:
        """Words for each tap of the outer axes."""
        return -(-prod(self.inner) // self.codes_per_word)


def pack_codes(weight: DistinctRows, layout: CodeLayout) -> npt.NDArray[np.uint32]:
    """Lay the signs out.

    Args:
        weight: its columns count channels and then the kernel's axes.
        layout: the order.

    Returns:
        uint32[groups, chunks, distinct rows of a group, outer taps, words]. Channels that are not
        there have zeros.
    """
    plan, taps = weight.plan, prod(layout.kernel)
    signs = weight.signs.reshape(-1, layout.channels, taps)
    padding = layout.chunks * layout.tables * layout.inputs - layout.channels
    padded = np.pad(signs, ((0, 0), (0, padding), (0, 0))).astype(np.uint32)
    parted = padded.reshape(len(signs), layout.chunks, layout.tables, layout.inputs, taps)
    bits = np.arange(layout.inputs, dtype=np.uint32)
    codes = (parted << bits[:, None]).sum(axis=3, dtype=np.uint32)
    ordered = codes.transpose(1, 0, 3, 2).reshape(layout.chunks, len(signs), prod(layout.outer), -1)
    words = _words(ordered, layout)
    firsts = [int(weight.first_pattern(group)) for group in range(plan.groups)]
    rows: Sequence[Any] = [words[:, first : first + plan.distinct_rows] for first in firsts]
    return np.ascontiguousarray(np.stack(rows))


def _words(codes: npt.NDArray[np.uint32], layout: CodeLayout) -> npt.NDArray[np.uint32]:
    """uint32[..., codes] → uint32[..., words]."""
    per_word = layout.codes_per_word
    padded = np.pad(codes, [(0, 0)] * 3 + [(0, -codes.shape[3] % per_word)])
    parted = padded.reshape(*codes.shape[:3], -1, per_word)
    shifts = layout.inputs * np.arange(per_word, dtype=np.uint32)
    words: npt.NDArray[np.uint32] = (parted << shifts).sum(-1, dtype=np.uint32)
    return words
