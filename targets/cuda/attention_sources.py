"""CUDA source of the attention kernel; one text for one layer."""

from __future__ import annotations

from dataclasses import dataclass

from tbn_compile.targets.cuda.kernel_files import CUDA_TYPES, read_kernel

ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
"""The element types that the kernel takes."""


@dataclass(frozen=True)
class AttentionKind:
    """What the kernel is compiled for; `tbn::Attention`.

    Attributes:
        dtype: of all tensors, "float16", "bfloat16" or "float32"; sums are float32.
        head_size: of queries, keys and values.
        aligned: whether every row of the four starts at a multiple of 16 bytes and is one long.
        masked: whether a mask is added to the scores.
    """

    dtype: str
    head_size: int
    aligned: bool
    masked: bool

    @property
    def padded_head(self) -> int:
        """`tbn::Attention::kHead`."""
        return -(-self.head_size // 16) * 16


@dataclass(frozen=True)
class AttentionShape:
    """How the kernel divides its work; the names are those of `tbn::Attention`.

    Attributes:
        row_warps: warps side by side along the queries.
        row_tiles: runs of 16 queries per warp.
        shares: warps that divide the keys of a stage.
        keys: per stage and share, a multiple of 16.
    """

    row_warps: int
    row_tiles: int
    shares: int
    keys: int

    @property
    def rows(self) -> int:
        """Queries per block."""
        return 16 * self.row_tiles * self.row_warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.row_warps * self.shares

    def shared_bytes(self, kind: AttentionKind) -> int:
        """`tbn::Attention::kSharedBytes`."""
        head, size = kind.padded_head, ELEMENT_BYTES[kind.dtype]
        pitches = 2 * head + (12 if kind.dtype == "float32" else 16)
        stages = 2 * self.keys * self.shares * pitches * size
        merge = 4 * self.threads * self.row_tiles * (head // 2 + 4)
        return max(stages, merge if self.shares > 1 else 0)


def attention_source(name: str, kind: AttentionKind, shape: AttentionShape) -> str:
    """A device function that attends with one block's queries, on any architecture from 8.0.

    Args:
        name: its name; it takes `(query, key, value, mask, output, shared, tile, queries, keys,
            scale, query_offset, query_stride, key_offset, key_stride, value_offset, value_stride,
            mask_offset, mask_stride, output_offset, output_stride, mask_column_stride)`, offsets
            and strides in elements, and nothing of a mask if there is none.
        kind: what it computes.
        shape: how it divides the work.

    Returns:
        CUDA C++; sources of several functions may follow each other.
    """
    element = CUDA_TYPES[kind.dtype]
    arguments = (
        *(element, kind.head_size, str(kind.aligned).lower(), str(kind.masked).lower()),
        *(shape.row_warps, shape.row_tiles, shape.shares, shape.keys),
    )
    mask, offsets, column, pointer, strides = "", "", "", "nullptr", "0, 0"
    if kind.masked:
        mask = " const void* mask,"
        offsets = "long long mask_offset, long long mask_stride, "
        column = ", long long mask_column_stride"
        pointer = f"static_cast<const {element}*>(mask) + mask_offset"
        strides = "mask_stride, mask_column_stride"
    return f"""{read_kernel("common.cuh")}{read_kernel("attention.cuh")}
__device__ __forceinline__ void {name}(
    const void* query, const void* key, const void* value,{mask} void* output, void* shared,
    int tile, int queries, int keys, float scale, long long query_offset, long long query_stride,
    long long key_offset, long long key_stride, long long value_offset, long long value_stride,
    {offsets}long long output_offset, long long output_stride{column}) {{
  tbn::Attention<{", ".join(map(str, arguments))}> attention{{
      static_cast<const {element}*>(query) + query_offset,
      static_cast<const {element}*>(key) + key_offset,
      static_cast<const {element}*>(value) + value_offset,
      {pointer},
      static_cast<{element}*>(output) + output_offset,
      query_stride, key_stride, value_stride, {strides}, output_stride, queries, keys, scale}};
  attention.run(static_cast<unsigned char*>(shared), tile);
}}
"""
