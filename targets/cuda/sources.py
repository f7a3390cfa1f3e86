"""CUDA source of the kernels for tiled layers; one text for one layer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from tbn_compile.targets.cuda.kernel_files import CUDA_TYPES, read_kernel

_PTX_TYPES = {"float16": "f16", "bfloat16": "bf16"}
ELEMENT_TYPES = ("float16", "bfloat16")
"""The activations that the kernels take."""
ACTIVATIONS = {
    "gelu": "value = value * (0.5f + 0.5f * erff(value * 0.70710678f));",
    "gelu_tanh": (
        "value = value * (0.5f + 0.5f * "
        "tanhf(0.7978845608f * value * (1.f + 0.044715f * value * value)));"
    ),
}
"""Statements on the float `value`, by the name of the epilogue's step."""


@dataclass(frozen=True)
class GemmShape:
    """How the many-rows kernel divides its work; the names are those of `tbn::Gemm`.

    Attributes:
        groups: warpgroups that multiply, 1 to 3.
        spans: runs of 64 distinct rows per warpgroup.
        columns: rows of x per tile.
        stages: boxes of x in flight, each of `columns` rows and 64 inputs.
        store_rows: rows of y per store; divides `columns`.
        blocks: blocks at once on a multiprocessor; 1 if there are several warpgroups.
    """

    groups: int
    spans: int
    columns: int
    stages: int
    store_rows: int
    blocks: int = 1

    @property
    def tile_rows(self) -> int:
        """Distinct rows per tile."""
        return 64 * self.groups * self.spans

    @property
    def threads(self) -> int:
        """Threads of a block: the warpgroups that multiply, and one that loads."""
        return 128 * (self.groups + 1)

    @property
    def shared_bytes(self) -> int:
        """`tbn::Gemm::kSharedBytes`."""
        boxes = self.stages * self.columns * 128
        stores = 2 * self.groups * self.store_rows * 128
        return 1024 + boxes + stores + 16 * self.stages


@dataclass(frozen=True)
class GemvShape:
    """How the few-rows kernel divides its work; the names are those of `tbn::Gemv`.

    Attributes:
        row_warps: warps side by side, each with `row_tiles` runs of 16 distinct rows.
        row_tiles: runs of 16 distinct rows per warp.
        input_warps: shares of the inputs in one block; at most 15 if there are several row warps.
        splits: blocks that divide the inputs further; their sums need `gemv_finish_source`.
        lines: the most rows of x, 1 to 16.
        stages: blocks of 128 inputs in shared memory, per share; at least 2.
    """

    row_warps: int
    row_tiles: int
    input_warps: int
    splits: int
    lines: int
    stages: int

    @property
    def rows(self) -> int:
        """Distinct rows per block."""
        return 16 * self.row_tiles * self.row_warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.row_warps * self.input_warps

    def stage_bytes(self, dtype: str) -> int:
        """Of all shares, for one stage; dtype is that of x."""
        line = 512 + 32 if dtype == "float32" else 256 + 16
        return self.input_warps * (self.rows * 16 + self.lines * line)

    def shared_bytes(self, dtype: str) -> int:
        """`tbn::Gemv::kSharedBytes`; dtype is that of x."""
        batch, pitch = -(-self.lines // 8) * 8, (self.rows + 27) // 32 * 32 + 4
        return max(self.stages * self.stage_bytes(dtype), self.input_warps * batch * pitch * 4)


@dataclass(frozen=True)
class MmaShape:
    """How the kernel for any architecture divides its work; the names are those of `tbn::MmaGemm`.

    Attributes:
        row_warps: warps side by side along the distinct rows.
        column_warps: warps along the rows of x, or the positions of a convolution.
        shares: groups of warps that divide the inputs.
        row_tiles: runs of 16 distinct rows per warp.
        column_tiles: runs of 8 columns per warp, an even number.
        depth: inputs per stage and share, 32 or 64.
        stages: of x in shared memory; 2 where x comes through registers.
    """

    row_warps: int
    column_warps: int
    shares: int
    row_tiles: int
    column_tiles: int
    depth: int
    stages: int

    @property
    def tile_rows(self) -> int:
        """Distinct rows per block."""
        return 16 * self.row_tiles * self.row_warps

    @property
    def tile_columns(self) -> int:
        """Columns per block."""
        return 8 * self.column_tiles * self.column_warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.row_warps * self.column_warps * self.shares

    @property
    def stage_inputs(self) -> int:
        """Inputs per stage."""
        return self.depth * self.shares

    def shared_bytes(self, layout: MatrixLayout | ImagesLayout) -> int:
        """`tbn::MmaGemm::kSharedBytes`."""
        parts = 3 if layout.dtype == "float32" else 1
        stage = parts * self.tile_columns * (2 * self.stage_inputs + 16)
        tiles = self.column_tiles // 2 if self.column_tiles > 2 else self.column_tiles
        sums = layout.sums(self.tile_rows, 8 * tiles * self.column_warps)
        return max(self.stages * stage, self.shares * sums * 4)


@dataclass(frozen=True)
class MatrixLayout:
    """A Gemm's x and y; `tbn::Matrix`.

    Attributes:
        dtype: of x and y, "float16", "bfloat16" or "float32".
        aligned_inputs: whether every row of x starts at a multiple of 16 bytes.
        aligned_rows: whether every copy of the distinct rows does in y.
    """

    dtype: str
    aligned_inputs: bool
    aligned_rows: bool

    @property
    def copied(self) -> bool:
        """Whether x goes to shared memory as it is."""
        return self.aligned_inputs and self.dtype != "float32"

    @property
    def kind(self) -> str:
        """Its C++ type."""
        return _template("Matrix", CUDA_TYPES[self.dtype], self.aligned_inputs, self.aligned_rows)

    @staticmethod
    def sums(rows: int, columns: int) -> int:
        """`tbn::Matrix::sums`."""
        return columns * (rows + 4)


@dataclass(frozen=True)
class ImagesLayout:
    """A convolution's x and y; `tbn::Images`.

    Attributes:
        dtype: of x and y, "float16", "bfloat16" or "float32".
        whole_taps: whether the channels are a multiple of 8.
        aligned_positions: whether every channel of y starts at a multiple of 16 bytes.
    """

    dtype: str
    whole_taps: bool
    aligned_positions: bool
    copied = False

    @property
    def kind(self) -> str:
        """Its C++ type."""
        return _template("Images", CUDA_TYPES[self.dtype], self.whole_taps, self.aligned_positions)

    @staticmethod
    def sums(rows: int, columns: int) -> int:
        """`tbn::Images::sums`."""
        return rows * (columns + 8)


GEOMETRY = (
    *("channels", "height", "width", "positions", "row_positions", "kernel_rows"),
    *("kernel_columns", "row_stride", "column_stride", "row_dilation", "column_dilation"),
    *("row_pad", "column_pad"),
)
"""What a convolution's function takes after the arguments of a Gemm's, in order."""


def gemm_source(name: str, shape: GemmShape, dtype: str, steps: Sequence[str]) -> str:
    """A device function for many rows of x, on Hopper.

    Args:
        name: its name; it takes `(x_map, y_map, words, scale, bias, shared, batch, rows, copies,
            inputs)`.
        shape: how it divides the work.
        dtype: "float16" or "bfloat16".
        steps: statements on the float `value`, after scale and bias.

    Returns:
        CUDA C++; sources of several functions may follow each other.
    """
    kind = (
        f"tbn::Gemm<{CUDA_TYPES[dtype]}, {name}_activation, {shape.groups}, {shape.spans}, "
        f"{shape.columns}, {shape.stages}, {shape.store_rows}>"
    )
    files = (
        read_kernel("common.cuh") + _wgmma(shape.columns, dtype) + read_kernel("gemm_hopper.cuh")
    )
    return f"""{files}
{_activation(name, steps)}
__device__ __forceinline__ void {name}(
    unsigned long long x_map, unsigned long long y_map, const unsigned* words, const float* scale,
    const float* bias, void* shared, int batch, int rows, int copies, int inputs) {{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  {kind} gemm{{rows, copies, batch, inputs, words, scale, bias}};
  gemm.run(reinterpret_cast<const void*>(x_map), reinterpret_cast<const void*>(y_map),
           static_cast<unsigned char*>(shared));
#else
  __trap();
#endif
}}
"""


def gemv_source(name: str, shape: GemvShape, dtype: str, steps: Sequence[str]) -> str:
    """A device function for few rows of x.

    Args:
        name: its name; it takes `(x, y, words, scale, bias, shared, batch, rows, copies, inputs)`.
            Where blocks divide the inputs, y is float[splits, batch, rows], for the function from
            `gemv_finish_source`.
        shape: how it divides the work.
        dtype: of x and y, "float16", "bfloat16" or "float32".
        steps: statements on the float `value`, after scale and bias.

    Returns:
        CUDA C++; sources of several functions may follow each other.
    """
    element = CUDA_TYPES[dtype]
    kind = _template("Gemv", element, f"{name}_activation", *astuple(shape))
    return f"""{read_kernel("common.cuh")}{read_kernel("gemv.cuh")}
{_activation(name, steps)}
__device__ __forceinline__ void {name}(
    const void* x, void* y, const unsigned* words, const float* scale, const float* bias,
    void* shared, int batch, int rows, int copies, int inputs) {{
  {kind} gemv{{
      rows, copies, batch, inputs, words, scale, bias, static_cast<const {element}*>(x), y}};
  gemv.run(static_cast<unsigned char*>(shared));
}}
"""


def gemv_finish_source(name: str, splits: int, dtype: str, steps: Sequence[str]) -> str:
    """A device function that adds the sums of the blocks that divide the inputs.

    Args:
        name: its name; it takes `(sums, y, scale, bias, batch, rows, copies)`. A thread serves four
            distinct rows of one row of x.
        splits: blocks that divide the inputs.
        dtype: of y, "float16", "bfloat16" or "float32".
        steps: statements on the float `value`, after scale and bias.

    Returns:
        CUDA C++; sources of several functions may follow each other.
    """
    element = CUDA_TYPES[dtype]
    kind = _template("GemvFinish", element, f"{name}_activation", splits)
    return f"""{read_kernel("common.cuh")}{read_kernel("gemv.cuh")}
{_activation(name, steps)}
__device__ __forceinline__ void {name}(
    const float* sums, void* y, const float* scale, const float* bias, int batch, int rows,
    int copies) {{
  {kind} finish{{
      rows, copies, batch, reinterpret_cast<const float4*>(sums),
      reinterpret_cast<const float4*>(scale), reinterpret_cast<const float4*>(bias),
      static_cast<{element}*>(y)}};
  finish.run();
}}
"""


def mma_source(
    name: str, shape: MmaShape, layout: MatrixLayout | ImagesLayout, steps: Sequence[str]
) -> str:
    """A device function for many columns, on any architecture from 8.0.

    Args:
        name: its name; it takes `(x, y, words, scale, bias, shared, columns, rows, copies,
            inputs)`, and of a convolution the numbers of `GEOMETRY`.
        shape: how it divides the work.
        layout: of x and y.
        steps: statements on the float `value`, after scale and bias.

    Returns:
        CUDA C++; sources of several functions may follow each other.
    """
    element = CUDA_TYPES[layout.dtype]
    geometry = GEOMETRY if isinstance(layout, ImagesLayout) else ()
    parameters = "".join(f", int {name}" for name in geometry)
    values = "".join(f", {name}" for name in geometry)
    kind = _template("MmaGemm", layout.kind, f"{name}_activation", *astuple(shape))
    return f"""{read_kernel("common.cuh")}{read_kernel("gemm.cuh")}
{_activation(name, steps)}
__device__ __forceinline__ void {name}(
    const void* x, void* y, const unsigned* words, const float* scale, const float* bias,
    void* shared, int columns, int rows, int copies, int inputs{parameters}) {{
  {kind} gemm{{
      {{rows, copies, columns, inputs, static_cast<const {element}*>(x),
       static_cast<{element}*>(y){values}}},
      words, scale, bias}};
  gemm.run(static_cast<unsigned char*>(shared));
}}
"""


def clip_step(lower: float, upper: float) -> str:
    """A statement that clamps by comparisons which a NaN fails, so that it passes through."""
    low, high = (f"__int_as_float(0x{_bits(bound):08x})" for bound in (lower, upper))
    return f"value = value < {low} ? {low} : value > {high} ? {high} : value;"


def _activation(name: str, steps: Sequence[str]) -> str:
    body = "\n    ".join(steps)
    return f"""struct {name}_activation {{
  static __device__ __forceinline__ float apply(float value) {{
    {body}
    return value;
  }}
}};"""


def _template(name: str, *arguments: str | int) -> str:
    texts = (str(value).lower() if isinstance(value, bool) else str(value) for value in arguments)
    return f"tbn::{name}<{', '.join(texts)}>"


def _wgmma(columns: int, dtype: str) -> str:
    """`tbn::Wgmma` of 64 rows, `columns` columns and 16 inputs, operand A in registers.

    A specialisation: the kernel finds those that follow its own text too.
    """
    count, kind = columns // 2, _PTX_TYPES[dtype]
    sums = ", ".join(f"%{i}" for i in range(count))
    a = ", ".join(f"%{count + i}" for i in range(4))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    return f"""#ifndef TBN_WGMMA_{kind}_{columns}
#define TBN_WGMMA_{kind}_{columns}
namespace tbn {{
template <>
struct Wgmma<{CUDA_TYPES[dtype]}, {columns}> {{
  static __device__ __forceinline__ void multiply(float (&d)[{count}], const unsigned (&a)[4],
                                                  unsigned long long b, int add) {{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("{{\\n.reg .pred add;\\nsetp.ne.b32 add, %{count + 5}, 0;\\n"
               "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
               "{{{sums}}}, {{{a}}}, %{count + 4}, add, 1, 1, 0;\\n}}"
               : {outputs}
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#endif
  }}
}};
}}  // namespace tbn
#endif
"""


def _bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
