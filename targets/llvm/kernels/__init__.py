"""CPU kernels for tiled layers, as TIR.

One block of code does all the work: up to 8 positions (rows of a Gemm's input, or neighbouring
outputs of a convolution) times a few vectors of distinct rows of the weight, summed in registers.
The distinct rows lie in the lanes; one vector load gives the signs of many inputs for every lane.

* Plainly, each sign is shifted to the top, becomes ±1.0, and multiplies a broadcast input. The
  positions share the unpacking. Nothing unpacked is stored.
* With tables, where the processor can permute a vector's entries: for each 5 inputs (4 with AVX2) a
  vector holds the sums for every combination of their signs, up to the sign of the last. A code
  picks an entry for every lane. A permutation and a multiply-add do the work of 5 multiply-adds.
"""

from tbn_compile.targets.llvm.kernels.activations import (
    any_padding,
    group_of,
    pad_function,
    padded_shape,
    table_function,
    table_shape,
)
from tbn_compile.targets.llvm.kernels.tiled import Kernel, tiled_kernel

__all__ = [
    "Kernel",
    "any_padding",
    "group_of",
    "pad_function",
    "padded_shape",
    "table_function",
    "table_shape",
    "tiled_kernel",
]
