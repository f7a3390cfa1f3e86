"""Models as ONNX Runtime's own static quantiser leaves them."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/fashion_mnist"
TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


def example_images(model):
    """The shipped test images in the shape of a model's input, float32, and their labels."""
    data = np.load(EXAMPLES / "test_images.npz")
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value for dim in dims][1:]
    return data["images"].reshape(-1, *shape), data["labels"]


def quantized_example(name, dtype="int8", *, per_channel=False, **options):
    """An example network in QDQ form, and the images."""
    model = onnx.load(EXAMPLES / f"{name}.onnx")
    images, _ = example_images(model)
    return quantize(model, images, dtype, per_channel=per_channel, **options), images


def quantize(model, samples, dtype="int8", *, per_channel=False, **options):
    """A model in QDQ form: activations of `dtype`, int8 weights, int32 biases.

    Args:
        model: of one input.
        samples: inputs to calibrate with, the batch first.
        dtype: of activations, "int8" or "uint8".
        per_channel: whether weights have a scale per output.
        options: extra options of the quantiser.
    """
    name = model.graph.input[0].name
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "model.onnx"), Path(folder, "quantized.onnx")
        onnx.save(model, source)
        quantize_static(
            source,
            output,
            _Samples([{name: sample[None]} for sample in samples]),
            quant_format=QuantFormat.QDQ,
            activation_type=TYPES[dtype],
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
            extra_options=options,
        )
        return onnx.load(output)


def with_float_weights(model):
    """The model with every constant DequantizeLinear replaced by the numbers it gives."""
    from onnx.reference import ReferenceEvaluator

    stored = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        (value,) = ReferenceEvaluator(node).run(None, {name: stored[name] for name in node.input})
        result.graph.node.remove(node)
        result.graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
    return result


def without_first_quantize(model):
    """The model with an input of integers: its first QuantizeLinear cut off."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    (quantize,) = (node for node in graph.node if node.input[0] == graph.input[0].name)
    zero_point = next(each for each in graph.initializer if each.name == quantize.input[2])
    graph.input[0].type.tensor_type.elem_type = zero_point.data_type
    for node in graph.node:
        names = [graph.input[0].name if n == quantize.output[0] else n for n in node.input]
        del node.input[:]
        node.input.extend(names)
    graph.node.remove(next(node for node in graph.node if node.output[0] == quantize.output[0]))
    return result


def run_unoptimized(model, feeds):
    """The outputs as the graph says: optimised, a session rounds float weights to int8 itself."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


@dataclass
class _Samples(CalibrationDataReader):
    feeds: list

    def get_next(self):
        return self.feeds.pop(0) if self.feeds else None
