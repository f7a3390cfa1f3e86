"""Target `llvm`: a shared library for a CPU, run by TVM's runtime alone."""

from tbn_compile.targets.llvm.target import LlvmTarget

__all__ = ["LlvmTarget"]
