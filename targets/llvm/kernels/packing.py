"""Signs as the kernels read them: for each lane one word with the signs of many inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tbn_compile.passes.relax.distinct_rows import DistinctRows
from tbn_compile.tile import Signs

WORD_BITS = 32


@dataclass(frozen=True, eq=False)
class PackedSigns:
    """The signs of a layer's distinct rows.

    Inputs are counted by the kernel's axes and then the channels. The first axes are `taps`, loops
    of their own. The inputs of a tap make codes of `group` inputs each, the last one perhaps fewer:

    * a group of one is its sign's bit, 1 for +1;
    * of a larger group the highest bit is the sign of its last input, and the others tell for each
      of the rest, the first lowest, whether it has the same sign.

    Attributes:
        words: uint32[groups, vectors, taps, words of a tap, lanes], the first code lowest. Rows and
            inputs that are not there are zeros.
        rows: distinct rows of a group.
        taps: extents of the kernel's first axes; none for a Gemm.
        inside: extents of the kernel's other axes, and last of the channels of a group, or K.
        group: inputs of a code.
    """

    words: npt.NDArray[np.uint32]
    rows: int
    taps: tuple[int, ...]
    inside: tuple[int, ...]
    group: int

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return self.words.shape[0]

    @property
    def lanes(self) -> int:
        """Rows of a vector."""
        return self.words.shape[-1]

    @property
    def vectors(self) -> int:
        """Vectors of rows in a group, padding among them: one, or an even number."""
        return self.words.shape[1]

    @property
    def codes(self) -> int:
        """Codes of a tap."""
        return -(-prod(self.inside) // self.group)

    @property
    def codes_per_word(self) -> int:
        """Codes in a word."""
        return WORD_BITS // self.group


def pack_signs(
    weight: DistinctRows, kernel: Sequence[int], lanes: int, group: int = 1
) -> PackedSigns:
    """Lay the signs out for vectors.

    Args:
        weight: its columns count channels and then the kernel's axes, as an ONNX weight does.
        kernel: the kernel's extents; none for a Gemm.
        lanes: rows of a vector.
        group: inputs of a code; those of one lie at the same tap.
    """
    plan = weight.plan
    channels = weight.signs.shape[1] // prod(kernel)
    taps, inside = list(kernel), [channels]
    while group == 1 and taps and taps[-1] * prod(inside) <= WORD_BITS:
        inside.insert(0, taps.pop())
    signs = weight.signs.reshape(-1, channels, prod(kernel)).transpose(0, 2, 1)
    codes = _codes(signs.reshape(-1, prod(taps), prod(inside)), group)
    firsts = [int(weight.first_pattern(each)) for each in range(plan.groups)]
    words = [_words(codes[first : first + plan.distinct_rows], lanes, group) for first in firsts]
    return PackedSigns(np.stack(words), plan.distinct_rows, tuple(taps), tuple(inside), group)


def _codes(signs: Signs, group: int) -> npt.NDArray[np.uint32]:
    """bool[rows, taps, inputs] → uint32[rows, taps, codes]."""
    padded = np.pad(signs, ((0, 0), (0, 0), (0, -signs.shape[2] % group)))
    grouped = padded.reshape(*signs.shape[:2], -1, group)
    last = grouped[..., -1:]
    bits = np.concatenate([grouped[..., :-1] == last, last], axis=-1).astype(np.uint32)
    return (bits << np.arange(group, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)


def _words(codes: npt.NDArray[np.uint32], lanes: int, group: int) -> npt.NDArray[Any]:
    """uint32[rows, taps, codes] → uint32[vectors, taps, words, lanes]."""
    rows, per_word = len(codes), WORD_BITS // group
    whole = lanes if rows <= lanes else 2 * lanes
    padded = np.pad(codes, ((0, -rows % whole), (0, 0), (0, -codes.shape[2] % per_word)))
    parted = padded.reshape(*padded.shape[:2], -1, per_word)
    words = (parted << (group * np.arange(per_word, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    return np.ascontiguousarray(words.reshape(-1, lanes, *words.shape[1:]).transpose(0, 2, 3, 1))
