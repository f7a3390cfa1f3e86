"""The block of code that a Gemm repeats: some positions times some vectors of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import tirx
from tvm.tirx.script import builder as T

from tbn_compile.targets.llvm.kernels.packing import PackedSigns

_MOST_VECTORS = 4
PERMUTE = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}
"""LLVM's intrinsic that picks the entries of a vector, by its lanes."""

Load: TypeAlias = Callable[[Any, Any], Any]
"""(position of the block, code) → a vector: the code's input for all lanes, or the table of its
inputs' sums."""
Write: TypeAlias = Callable[[Any, Any], None]
"""(first distinct row, sums [positions, vectors, lanes]) → written."""


@dataclass(frozen=True)
class Span:
    """Consecutive positions in blocks of one length.

    Attributes:
        start: the first position.
        length: of a block.
        count: of blocks.
    """

    start: Any
    length: int
    count: Any


@dataclass(frozen=True, eq=False)
class Block:
    """Code for the sums of a few positions, over some distinct rows.

    Attributes:
        signs: of the layer.
        words: the buffer that holds them.
        positions: how many, see `spans_of`.
    """

    signs: PackedSigns
    words: Any
    positions: int

    @property
    def vectors(self) -> int:
        """Vectors of rows that it serves at a time."""
        most = min(_sums(self.signs.lanes) // self.positions, _MOST_VECTORS)
        return max(n for n in (4, 2, 1) if n == 1 or (n <= most and self.signs.vectors % n == 0))

    @property
    def steps(self) -> int:
        """How often it has to run for all rows."""
        return self.signs.vectors // self.vectors

    def emit(self, step: Any, load: Load, write: Write) -> None:
        """Emit it.

        Args:
            step: which of the steps.
            load: gives what a code is about.
            write: takes complete sums, of which those of rows that are not there mean nothing. It
                must name them by constants, or they would not stay in registers.
        """
        first, signs = step * self.vectors, self.signs
        every = vector_of(signs.lanes)
        sums = T.alloc_buffer((self.positions, self.vectors, signs.lanes), "float32", scope="local")
        words = T.alloc_buffer((self.vectors, signs.lanes), "uint32", scope="local")
        with T.unroll(0, self.positions) as position, T.unroll(0, self.vectors) as vector:
            zeros = T.broadcast(tirx.const(0.0, "float32"), signs.lanes)
            T.buffer_store(sums, zeros, [position, vector, every])

        def add(index: Any, codes: int) -> None:
            with T.unroll(0, self.vectors) as vector:
                loaded = self.words[first + vector, index, every]
                T.buffer_store(words, loaded, [vector, every])
            with (
                T.unroll(0, codes) as code,
                T.unroll(0, self.vectors) as vector,
                T.unroll(0, self.positions) as position,
            ):
                value = load(position, index * signs.codes_per_word + code)
                product = self._product(value, words[vector, every], code)
                total = sums[position, vector, every] + product
                T.buffer_store(sums, total, [position, vector, every])

        whole, rest = divmod(signs.codes, signs.codes_per_word)
        if whole:
            with T.serial(0, whole) as index:
                add(index, signs.codes_per_word)
        if rest:
            add(whole, rest)
        write(first * signs.lanes, sums)

    def _product(self, value: Any, words: Any, code: Any) -> Any:
        """The code's sign times its input, or times the entry of the table that it names."""
        group, lanes = self.signs.group, self.signs.lanes
        shift = code.astype("uint32") * tirx.const(group, "uint32")
        if group > 1:
            # Bits above the index are not looked at.
            index = T.reinterpret(f"int32x{lanes}", words >> T.broadcast(shift, lanes))
            value = T.call_llvm_pure_intrin(f"float32x{lanes}", PERMUTE[lanes], value, index)
        return value * _sign(words, shift + tirx.const(group - 1, "uint32"), lanes)


def spans_of(extent: Any, signs: PackedSigns) -> Iterator[Span]:
    """Blocks for all positions of an extent, integer or symbolic; equal ones where possible."""
    most = _sums(signs.lanes) // 2
    done: Any = 0
    for length in _block_lengths(extent, most):
        count = (extent - done) // length
        yield Span(done, length, count)
        done = done + count * length


def _block_lengths(extent: Any, most: int) -> Iterator[int]:
    if not isinstance(extent, int | tirx.IntImm):
        yield from (length for length in (8, 4, 2, 1) if length <= most)
        return
    known = int(extent)
    if known == 0:
        return
    longest = -(-known // -(-known // most))
    yield longest
    if known % longest:
        yield known % longest


def _sums(lanes: int) -> int:
    """Sums that stay in registers beside the signs: AVX-512 has 32 registers, AVX2 has 16."""
    return 16 if lanes == 16 else 8


def vector_of(lanes: int) -> Any:
    """The indices of all lanes."""
    return tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), lanes)


def _sign(words: Any, bit: Any, lanes: int) -> Any:
    """±1.0 of a bit: its inverse becomes the sign of 1.0."""
    top = (words >> T.broadcast(bit, lanes)) << T.broadcast(tirx.const(31, "uint32"), lanes)
    inverse = top ^ T.broadcast(tirx.const(0xBF800000, "uint32"), lanes)
    return T.reinterpret(f"float32x{lanes}", inverse)
