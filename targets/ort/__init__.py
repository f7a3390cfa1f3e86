"""Target `ort`: a standard ONNX file that ONNX Runtime runs, with or without our library."""

from tbn_compile.targets.ort.target import OrtTarget

__all__ = ["OrtTarget"]
