"""Passes over ONNX graphs (onnx_ir), one file each; usable one by one in any pipeline."""

from tbn_compile.passes.onnx.add_function_bodies import AddFunctionBodiesPass
from tbn_compile.passes.onnx.finding import Layer, TileFinder
from tbn_compile.passes.onnx.fold_batch_norm import FoldBatchNormPass
from tbn_compile.passes.onnx.fuse_activation import FuseActivationPass
from tbn_compile.passes.onnx.fuse_bias import FuseBiasPass
from tbn_compile.passes.onnx.infer_shapes import InferShapesPass
from tbn_compile.passes.onnx.lower_conv import LowerConvPass
from tbn_compile.passes.onnx.lower_gemm import LowerGemmPass
from tbn_compile.passes.onnx.lower_matmul import LowerMatMulPass
from tbn_compile.passes.onnx.order_initializers import OrderInitializersPass
from tbn_compile.passes.onnx.raise_opset import RaiseOpsetPass
from tbn_compile.passes.onnx.replace_expand import ReplaceExpandPass
from tbn_compile.passes.onnx.share_tiles import ShareTilesPass
from tbn_compile.passes.onnx.tiled_nodes import nodes_of, tiled_nodes

__all__ = [
    "AddFunctionBodiesPass",
    "FoldBatchNormPass",
    "FuseActivationPass",
    "FuseBiasPass",
    "InferShapesPass",
    "Layer",
    "LowerConvPass",
    "LowerGemmPass",
    "LowerMatMulPass",
    "OrderInitializersPass",
    "RaiseOpsetPass",
    "ReplaceExpandPass",
    "ShareTilesPass",
    "TileFinder",
    "nodes_of",
    "tiled_nodes",
]
