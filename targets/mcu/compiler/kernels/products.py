"""Sums of signed inputs for the distinct rows, written into the TIR function under construction.

`load(k)` gives input k; the sums of one group's rows go to `Sums`. A `Lookup` adds from tables of
partial sums, a `Direct` adds the inputs themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from tbn_compile.passes.relax.distinct_rows import DistinctRows, Words, nibbles

GROUP = 4
"""Inputs behind one table of partial sums."""
ENTRIES = 2**GROUP
"""Partial sums in a table."""
WORD_GROUPS = 8
"""Groups of inputs whose signs one 32-bit word holds."""
BYTE = 8
Load: TypeAlias = Callable[[Any], Any]


class Sums(Protocol):
    """Where the sums of one group's distinct rows accumulate."""

    @property
    def dtype(self) -> str:
        """Their element type."""

    def load(self, row: Any) -> Any:
        """A sum so far."""

    def store(self, value: Any, row: Any) -> None:
        """Replace a sum."""

    def clear(self, rows: int) -> None:
        """Start from zero."""


@dataclass(frozen=True)
class BufferSums:
    """Sums in a buffer.

    Attributes:
        buffer: the buffer.
        place: its indices for a row and, where there are several sums of it, its position.
    """

    buffer: Any
    place: Callable[..., Sequence[Any]]

    @property
    def dtype(self) -> str:
        """Their element type."""
        return str(self.buffer.ty.dtype)

    def load(self, row: Any, *position: Any) -> Any:
        """A sum so far."""
        return self.buffer[tuple(self.place(row, *position))]

    def store(self, value: Any, row: Any, *position: Any) -> None:
        """Replace a sum."""
        T.buffer_store(self.buffer, value, list(self.place(row, *position)))

    def clear(self, rows: int, extents: Sequence[int] = ()) -> None:
        """Start from zero at every position."""
        with grid((rows, *extents)) as place:
            self.store(tirx.const(0, self.dtype), *place)

    def at(self, *position: Any) -> BufferSums:
        """The sums at one position."""
        return BufferSums(self.buffer, lambda row: self.place(row, *position))


@contextmanager
def grid(extents: Sequence[int]) -> Iterator[list[Any]]:
    """Nested loops; none for no extents."""
    with ExitStack() as loops:
        yield [loops.enter_context(T.serial(0, extent)) for extent in extents]


class Product(Protocol):
    """A way to add up the inputs of each distinct row."""

    @property
    def constants(self) -> tuple[Words, ...]:
        """The packed signs."""

    @property
    def is_single_pass(self) -> bool:
        """Whether a sum is complete when it is first stored."""

    def allocate(self, dtype: str) -> Any:
        """Take workspace in the function under construction; None if there is no need."""

    def emit(
        self, tables: Any, packed: Sequence[Any], load: Load, sums: Sums, first_pattern: Any
    ) -> None:
        """Compute the sums of one group's rows.

        Args:
            tables: what `allocate` gave.
            packed: the buffers of `constants`.
            load: the inputs.
            sums: where the sums go; what was there is overwritten.
            first_pattern: the pattern of the group's first row.
        """


@dataclass(frozen=True, eq=False)
class Passes:
    """Groups of four inputs, some of them tabulated at a time.

    Attributes:
        nibbles: uint8[..., groups], the signs of each group as an index into its table.
        inputs: how many inputs the groups hold; the last may hold fewer than four.
        tables: the most groups of one pass.
    """

    nibbles: Words
    inputs: int
    tables: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many inputs each group holds."""
        return group_sizes(self.inputs)

    @property
    def whole(self) -> int:
        """How many passes tabulate `tables` groups of four."""
        return self.inputs // (GROUP * self.tables)

    @property
    def rest(self) -> tuple[int, ...]:
        """The sizes of the groups that are left for a last pass."""
        return self.sizes[self.whole * self.tables :]

    @property
    def constants(self) -> tuple[Words, ...]:
        """[passes, ..., words], then [..., words] of the last pass; each if there is any."""
        *leading, _ = self.nibbles.shape
        within = self.whole * self.tables
        whole = self.nibbles[..., :within].reshape(*leading, self.whole, self.tables)
        packed = [pack(np.moveaxis(whole, -2, 0))] if self.whole else []
        return tuple(packed + ([pack(self.nibbles[..., within:])] if self.rest else []))

    def allocate(self, dtype: str) -> Any:
        """The tables of one pass, no larger than they get: TVM shrinks others to wrong extents."""
        entries = 2 ** max(self.sizes)
        return T.alloc_buffer((min(self.tables, len(self.sizes)), entries), dtype)

    def emit(
        self,
        packed: Sequence[Any],
        visit: Callable[[Any, Sequence[int], Callable[..., Any]], None],
    ) -> None:
        """Loop over the passes.

        Args:
            packed: the buffers of `constants`.
            visit: emits one pass from its first input, the sizes of its groups, and its words.
        """
        buffers = list(packed)
        if self.whole:
            words = buffers.pop(0)
            with T.serial(0, self.whole) as number:
                first = number * (self.tables * GROUP)
                visit(first, (GROUP,) * self.tables, lambda *i: words[(number, *i)])
        if self.rest:
            last = buffers.pop()
            visit(self.whole * self.tables * GROUP, self.rest, lambda *i: last[i])


@dataclass(frozen=True, eq=False)
class Lookup:
    """Sums by tables: each group of four inputs has its 16 signed sums in a table.

    Attributes:
        weight: the distinct rows.
        tables: how many groups are tabulated before a pass over the rows.
    """

    weight: DistinctRows
    tables: int

    @cached_property
    def passes(self) -> Passes:
        """The passes over the inputs."""
        return Passes(
            nibbles(self.weight.signs, GROUP), self.weight.plan.distinct_columns, self.tables
        )

    @property
    def is_single_pass(self) -> bool:
        """See `Product`."""
        return self.weight.plan.distinct_columns <= GROUP * self.tables

    @property
    def constants(self) -> tuple[Words, ...]:
        """See `Passes`."""
        return self.passes.constants

    def allocate(self, dtype: str) -> Any:
        """The tables."""
        return self.passes.allocate(dtype)

    def emit(
        self, tables: Any, packed: Sequence[Any], load: Load, sums: Sums, first_pattern: Any
    ) -> None:
        """See `Product`."""
        rows = self.weight.plan.distinct_rows
        sums.clear(rows)

        def visit(first: Any, sizes: Sequence[int], words: Callable[..., Any]) -> None:
            fill_tables(tables, sizes, lambda k: load(first + k))
            add_from_tables(
                tables, len(sizes), lambda row, i: words(first_pattern + row, i), sums, rows
            )

        self.passes.emit(packed, visit)


@dataclass(frozen=True, eq=False)
class Direct:
    """Sums of the inputs one by one.

    Attributes:
        weight: the distinct rows.
    """

    weight: DistinctRows

    @property
    def is_single_pass(self) -> bool:
        """Always: a row's sum stays in a variable."""
        return True

    @property
    def constants(self) -> tuple[Words, ...]:
        """uint8[patterns, ceil(columns / 8)]."""
        return (np.packbits(self.weight.signs, axis=1, bitorder="little"),)

    def allocate(self, dtype: str) -> Any:
        """Nothing."""
        del dtype

    def emit(
        self, tables: Any, packed: Sequence[Any], load: Load, sums: Sums, first_pattern: Any
    ) -> None:
        """See `Product`."""
        del tables
        plan, (bits,) = self.weight.plan, packed
        whole, rest = divmod(plan.distinct_columns, BYTE)
        total = T.alloc_buffer((1,), sums.dtype, scope="local")

        def add(row: Any, byte: Any, count: int) -> None:
            signs = T.bind(bits[first_pattern + row, byte].astype("uint32"))
            for i in range(count):
                value = load(byte * BYTE + i)
                positive = (signs & _word(1 << i)) != _word(0)
                signed = tirx.Select(positive, total[0] + value, total[0] - value)
                T.buffer_store(total, signed, [0])

        with T.serial(0, plan.distinct_rows) as row:
            T.buffer_store(total, tirx.const(0, total.ty.dtype), [0])
            if whole:
                with T.serial(0, whole) as byte:
                    add(row, byte, BYTE)
            if rest:
                add(row, whole, rest)
            sums.store(total[0], row)


def group_sizes(inputs: int) -> tuple[int, ...]:
    """Inputs in groups of four and a shorter last one."""
    whole, rest = divmod(inputs, GROUP)
    return (GROUP,) * whole + ((rest,) if rest else ())


def pack(groups: Words) -> Words:
    """Pack the signs of the groups of one pass into the shortest words that hold them.

    Args:
        groups: uint8[..., groups], four bits each.

    Returns:
        uint8, uint16 or uint32 [..., words], the first group in the lowest bits.
    """
    *leading, count = groups.shape
    per_word = min(count, WORD_GROUPS)
    padded = np.pad(groups, [(0, 0)] * len(leading) + [(0, -count % per_word)])
    fields = padded.reshape(*leading, -1, per_word).astype(np.uint32)
    shifts = GROUP * np.arange(per_word, dtype=np.uint32)
    size = next(size for size in (1, 2, 4) if 8 * size >= GROUP * per_word)
    words = (fields << shifts).sum(axis=-1, dtype=np.uint32)
    return np.ascontiguousarray(words, dtype=f"u{size}")


def fill_tables(tables: Any, sizes: Sequence[int], load: Load) -> None:
    """Write every signed sum of each group of inputs.

    Args:
        tables: [groups, 16].
        sizes: of the groups; only the last may be short.
        load: input k of the block.
    """
    whole = sum(size == GROUP for size in sizes)
    if whole:
        with T.serial(0, whole) as group:
            fill_table(tables, group, [load(group * GROUP + i) for i in range(GROUP)])
    if whole < len(sizes):
        inputs = [load(whole * GROUP + i) for i in range(sizes[-1])]
        fill_table(tables, whole, inputs)


def add_from_tables(
    tables: Any,
    groups: int,
    word: Callable[[Any, int], Any],
    sums: Sums,
    rows: int,
    first: Any = 0,
) -> None:
    """Add what the tables hold for each row's signs to the row's sum.

    Args:
        tables: [at least first + groups, entries].
        groups: how many tables are read.
        word: word i of a row's signs.
        sums: of the rows.
        rows: how many rows there are.
        first: the first table.
    """
    with T.serial(0, rows) as row:
        total = sums.load(row)
        words = [T.bind(word(row, i).astype("uint32")) for i in range(-(-groups // WORD_GROUPS))]
        for group in range(groups):
            shift = GROUP * (group % WORD_GROUPS)
            index = (words[group // WORD_GROUPS] >> _word(shift)) & _word(ENTRIES - 1)
            total = total + tables[first + group, index.astype("int32")].astype(sums.dtype)
        sums.store(total, row)


def fill_table(tables: Any, group: Any, inputs: Sequence[Any]) -> None:
    """Sums by their index, whose bit i is the sign of input i; the lower half is negative."""
    values = [T.bind(each) for each in inputs]
    if "int" in str(tables.ty.dtype):
        _walk_table(tables, group, values)
        return
    sums = _positive_sums(values)
    for index, value in enumerate(sums):
        for place, sum_ in ((len(sums) + index, value), (len(sums) - 1 - index, -value)):
            T.buffer_store(tables, sum_.astype(tables.ty.dtype), [group, place])


def _walk_table(tables: Any, group: Any, inputs: Sequence[Any]) -> None:
    """The sums of integers, which are exact, so that each comes from one that differs in a sign."""
    total = T.alloc_buffer((1,), str(inputs[0].ty.dtype), scope="local")
    T.buffer_store(total, -sum(inputs[1:], inputs[0]), [0])
    signs = 0
    for step in range(2 ** len(inputs)):
        T.buffer_store(tables, total[0].astype(tables.ty.dtype), [group, signs])
        changed = ((step + 1) & -(step + 1)).bit_length() - 1
        if changed == len(inputs):
            return
        signs ^= 1 << changed
        twice = inputs[changed] * 2
        T.buffer_store(total, total[0] + twice if signs >> changed & 1 else total[0] - twice, [0])


def _positive_sums(inputs: Sequence[Any]) -> list[Any]:
    """The sums in which the last input is positive."""
    if len(inputs) == 1:
        return [inputs[0]]
    if len(inputs) == 2:
        return [inputs[1] - inputs[0], inputs[1] + inputs[0]]
    difference, total = _positive_sums(inputs[:2])
    return [
        signed
        for high in _positive_sums(inputs[2:])
        for signed in (high - total, high - difference, high + difference, high + total)
    ]


def _word(value: int) -> Any:
    return tirx.const(value, "uint32")
