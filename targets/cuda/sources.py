"""CUDA source of the kernels for tiled layers; it needs nothing but this folder."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).with_name("kernels")
_CUDA_TYPES = {"float16": "__half", "bfloat16": "__nv_bfloat16"}
_PTX_TYPES = {"float16": "f16", "bfloat16": "bf16"}
ELEMENT_TYPES = tuple(_CUDA_TYPES)
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
        row_warps: warps side by side, each with 16 distinct rows.
        input_warps: shares of the inputs in one block.
        cluster: blocks that divide the inputs further; more than 1 needs compute capability 9.0.
        lines: rows of x per block, 1 to 16.
    """

    row_warps: int
    input_warps: int
    cluster: int
    lines: int

    @property
    def rows(self) -> int:
        """Distinct rows per block."""
        return 16 * self.row_warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.row_warps * self.input_warps

    @property
    def shared_bytes(self) -> int:
        """`tbn::Gemv::kSharedBytes`."""
        batch = -(-self.lines // 8) * 8
        mine = -(-self.rows // self.cluster)
        line = (4 if self.lines > 4 else 8) * 256 + 16
        partial = _rounded(self.input_warps * self.rows * (batch + 1) * 4)
        return partial + _rounded(mine * batch * 4) + 2 * self.input_warps * self.lines * line


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
        f"tbn::Gemm<{_CUDA_TYPES[dtype]}, {name}_activation, {shape.groups}, {shape.spans}, "
        f"{shape.columns}, {shape.stages}, {shape.store_rows}>"
    )
    return f"""{_common()}{_wgmma(shape.columns, dtype)}{_read("gemm_hopper.cuh")}
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
        shape: how it divides the work.
        dtype: "float16" or "bfloat16".
        steps: statements on the float `value`, after scale and bias.

    Returns:
        CUDA C++; sources of several functions may follow each other.
    """
    element = _CUDA_TYPES[dtype]
    kind = (
        f"tbn::Gemv<{element}, {name}_activation, {shape.row_warps}, {shape.input_warps}, "
        f"{shape.cluster}, {shape.lines}>"
    )
    return f"""{_common()}{_read("gemv.cuh")}
{_activation(name, steps)}
__device__ __forceinline__ void {name}(
    const void* x, void* y, const unsigned* words, const float* scale, const float* bias,
    void* shared, int batch, int rows, int copies, int inputs) {{
  {kind} gemv{{rows, copies, batch, inputs, words, scale, bias,
    static_cast<const {element}*>(x), static_cast<{element}*>(y)}};
  gemv.run(static_cast<unsigned char*>(shared));
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


def _wgmma(columns: int, dtype: str) -> str:
    """`tbn::wgmma` of 64 rows, `columns` columns and 16 inputs, operand A in registers."""
    count, kind = columns // 2, _PTX_TYPES[dtype]
    sums = ", ".join(f"%{i}" for i in range(count))
    a = ", ".join(f"%{count + i}" for i in range(4))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    return f"""#ifndef TBN_WGMMA_{kind}_{columns}
#define TBN_WGMMA_{kind}_{columns}
namespace tbn {{
__device__ __forceinline__ void wgmma(float (&d)[{count}], const unsigned (&a)[4],
                                      unsigned long long b, int add, {_CUDA_TYPES[dtype]}) {{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("{{\\n.reg .pred add;\\nsetp.ne.b32 add, %{count + 5}, 0;\\n"
               "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
               "{{{sums}}}, {{{a}}}, %{count + 4}, add, 1, 1, 0;\\n}}"
               : {outputs}
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#endif
}}
}}  // namespace tbn
#endif
"""


def _common() -> str:
    return _read("common.cuh")


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _rounded(size: int) -> int:
    return (size + 15) // 16 * 16
