"""Graph passes: `onnx` rewrites ONNX graphs held in onnx_ir."""
