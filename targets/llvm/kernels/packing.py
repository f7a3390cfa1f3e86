"""Signs as the kernel of a Gemm reads them: for each lane a word with the signs of many inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tbn_compile.passes.relax.distinct_rows import DistinctRows
from tbn_compile.tile import Signs

WORD_BITS = 32


@dataclass(frozen=True, eq=False)
class PackedSigns:
    """The signs of a layer's distinct rows.

    Inputs make codes of `group` inputs each, the last one perhaps fewer:

    * a group of one is its sign's bit, 1 for +1;
    * of a larger group the highest bit is the sign of its last input, and the others tell for each
      of the rest, the first lowest, whether it has the same sign.

    Attributes:
        words: uint32[vectors, words of a row, lanes], the first code lowest. Rows and inputs that
            are not there are zeros.
        rows: distinct rows.
        inputs: distinct columns.
        group: inputs of a code.
    """

    words: npt.NDArray[np.uint32]
    rows: int
    inputs: int
    group: int

    @property
    def lanes(self) -> int:
        """Rows of a vector."""
        return self.words.shape[-1]

    @property
    def vectors(self) -> int:
        """Vectors of rows, padding among them: one, or an even number."""
        return self.words.shape[0]

    @property
    def codes(self) -> int:
        """Codes of a row."""
        return -(-self.inputs // self.group)

    @property
    def codes_per_word(self) -> int:
        """Codes in a word."""
        return WORD_BITS // self.group


def pack_signs(weight: DistinctRows, lanes: int, group: int = 1) -> PackedSigns:
    """Lay the signs out for vectors.

    Args:
        weight: of a Gemm.
        lanes: rows of a vector.
        group: inputs of a code.
    """
    rows, inputs = weight.signs.shape
    return PackedSigns(_words(_codes(weight.signs, group), lanes, group), rows, inputs, group)


def _codes(signs: Signs, group: int) -> npt.NDArray[np.uint32]:
    """bool[rows, inputs] → uint32[rows, codes]."""
    padded = np.pad(signs, ((0, 0), (0, -signs.shape[1] % group)))
    grouped = padded.reshape(len(signs), -1, group)
    last = grouped[..., -1:]
    bits = np.concatenate([grouped[..., :-1] == last, last], axis=-1).astype(np.uint32)
    return (bits << np.arange(group, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)


def _words(codes: npt.NDArray[np.uint32], lanes: int, group: int) -> npt.NDArray[Any]:
    """uint32[rows, codes] → uint32[vectors, words, lanes]."""
    rows, per_word = len(codes), WORD_BITS // group
    whole = lanes if rows <= lanes else 2 * lanes
    padded = np.pad(codes, ((0, -rows % whole), (0, -codes.shape[1] % per_word)))
    parted = padded.reshape(len(padded), -1, per_word)
    words = (parted << (group * np.arange(per_word, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    return np.ascontiguousarray(words.reshape(-1, lanes, words.shape[1]).transpose(0, 2, 1))
