"""CPU kernels for tiled layers, as TIR: only the distinct rows are computed, from packed signs.

* A Gemm holds distinct rows in the lanes. One vector load gives the signs of many inputs for every
  lane. Plainly, each becomes ±1.0 and multiplies a broadcast input. Where the processor can permute
  a vector's entries, a vector holds the sums of 5 inputs (4 with AVX2) for every combination of
  their signs, up to the sign of the last, and a code picks an entry for every lane.
* A convolution holds neighbouring outputs in the lanes and such tables in the cache, for all
  positions of a block: a code costs a load and an addition for as many outputs as a vector holds.
"""

from tbn_compile.targets.llvm.kernels.conv_schedule import Schedule, Shape, choose_schedule
from tbn_compile.targets.llvm.kernels.convolution import conv_kernel
from tbn_compile.targets.llvm.kernels.frame import Kernel
from tbn_compile.targets.llvm.kernels.gemm import gemm_kernel
from tbn_compile.targets.llvm.kernels.mixing import Mixture, mixed_rows
from tbn_compile.targets.llvm.kernels.tables import group_of

__all__ = [
    "Kernel",
    "Mixture",
    "Schedule",
    "Shape",
    "choose_schedule",
    "conv_kernel",
    "gemm_kernel",
    "group_of",
    "mixed_rows",
]
