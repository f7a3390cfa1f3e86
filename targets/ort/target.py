"""Package a lowered graph as one `.onnx` file, with external data beside it if it is large."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from tbn_compile.errors import ModelError, clean
from tbn_compile.files import staging_folder
from tbn_compile.loading import tensor_array
from tbn_compile.targets import Package, Request

MAX_EMBEDDED_BYTES = 2**30
"""The most bytes of tensors that stay inside the `.onnx` file; beyond, they go beside it."""


class OrtTarget:
    """The reference target: ONNX in, ONNX out."""

    description = "sub-bit ONNX file for ONNX Runtime 1.17 or later"
    suffix = ".tbn.onnx"
    options: frozenset[str] = frozenset()

    def __init__(self, _name: str = "ort") -> None:
        pass

    def package(self, request: Request) -> Package:
        """Check the model in full and write it.

        Its files are the output, and the output with `.data` added if the tensors do not fit into
        one file.

        Raises:
            ModelError: if the result is not valid ONNX or cannot be written.
        """
        model, output = request.graph, request.output
        tensors = [v.const_value for graph in model.graphs() for v in graph.initializers.values()]
        size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        with staging_folder(output) as staging:
            path = staging / output.name
            if size > MAX_EMBEDDED_BYTES:
                ir.save(model, path, external_data=f"{output.name}.data")
            else:
                _embed_external_tensors(model)
                path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
            _check(path)
            names = sorted(part.name for part in staging.iterdir())
        return Package(tuple(output.with_name(name) for name in names))


def _embed_external_tensors(model: ir.Model) -> None:
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.tensor(
                    tensor_array(tensor), dtype=tensor.dtype, name=value.name
                )
        for node in graph:
            for name, attribute in node.attributes.items():
                if isinstance(attribute.value, ir.ExternalTensor):
                    tensor = attribute.as_tensor()
                    embedded = ir.tensor(tensor_array(tensor), dtype=tensor.dtype)
                    node.attributes[name] = ir.AttrTensor(name, embedded)


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        first = clean(str(error).strip().split("\n")[0], 200)
        raise ModelError(f"the compiled model is not valid ONNX: {first}") from error
