"""Target `cuda`: a shared library for NVIDIA GPUs, run by TVM's runtime alone."""

from tbn_compile.targets.cuda.target import CudaTarget

__all__ = ["CudaTarget"]
