"""The pipeline, in the order a model travels: load, normalise, lower, optimise, package."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from tbn_compile.errors import ModelError, UsageError, clean
from tbn_compile.files import staging_folder
from tbn_compile.loading import load_model, model_files
from tbn_compile.operators import DOMAIN
from tbn_compile.passes import onnx as passes
from tbn_compile.targets import Package

ProgressCallback = Callable[[str, int, int], None]
"""Called with a phase's name, the steps done and the steps in all."""


@dataclass
class Pipeline:
    """A model on its way, with what is known about it so far.

    Attributes:
        source: the file that it came from.
        dump: folder for the model after each phase, or None.
        progress: called as long phases go on, or None.
        files: the source and its external data, once it is loaded.
        finder: what became of each layer.
        phases: seconds of each phase so far.
    """

    source: Path
    dump: Path | None = None
    progress: ProgressCallback | None = None
    files: frozenset[Path] = frozenset()
    finder: passes.TileFinder = field(default_factory=lambda: passes.TileFinder(0))
    phases: dict[str, float] = field(default_factory=dict)

    def run(self, input_dims: Mapping[str, int]) -> ir.Model:
        """Load, normalise, lower and optimise.

        Args:
            input_dims: extents for symbolic dimensions of the model's inputs.

        Raises:
            ModelError: if the model is unsafe, invalid or cannot be converted.
            UsageError: if an extent names no symbolic dimension.
        """
        with self._phase("load"):
            model = load_model(self.source)
            self.files = model_files(self.source, model)
        self._save("load", model)
        with self._naming_source():
            return self._rewrite(model, input_dims)

    def _rewrite(self, model: ir.Model, input_dims: Mapping[str, int]) -> ir.Model:
        with self._phase("normalise"):
            model = normalise(model, input_dims)
        self._save("normalise", model)
        with self._phase("lower"):
            model = self._lower(model)
        self._save("lower", model)
        with self._phase("optimise"):
            model = optimise(model)
        self._save("optimise", model)
        return model

    def package(self, write: Callable[[], Package]) -> Package:
        """Run a target's writer as the last phase.

        Raises:
            ModelError: if the model cannot be packaged; the text names the model.
        """
        with self._phase("package"), self._naming_source():
            return write()

    @contextmanager
    def _naming_source(self) -> Generator[None]:
        try:
            yield
        except ModelError as error:
            name = clean(self.source.name, 80)
            raise ModelError(f"{name}: {error}", error.longest + len(name) + 2) from error

    def _lower(self, model: ir.Model) -> ir.Model:
        layers = [n for n in model.graph.all_nodes() if n.op_type in _WEIGHTED and n.domain == ""]
        count = len(layers)
        if self.progress is not None:
            report = self.progress
            self.finder.on_layer = lambda done: report("lower", done, count)
        return lower(model, self.finder)

    @contextmanager
    def _phase(self, name: str) -> Generator[None]:
        start = time.perf_counter()
        yield
        self.phases[name] = time.perf_counter() - start

    def _save(self, name: str, model: ir.Model) -> None:
        if self.dump is None:
            return
        self.dump.mkdir(parents=True, exist_ok=True)
        output = self.dump / f"{len(self.phases)}-{name}.onnx"
        with staging_folder(output) as staging:
            ir.save(model, staging / output.name, external_data=f"{output.name}.data")


_WEIGHTED = ("Gemm", "MatMul", "Conv")
_UNSUPPORTED = (
    "ConvInteger", "ConvTranspose", "Einsum", "GRU", "LSTM", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "RNN",
)  # fmt: skip
_UNSUPPORTED_IN_MICROSOFT = ("FusedConv", "FusedGemm", "FusedMatMul", "MatMulNBits")


def normalise(model: ir.Model, input_dims: Mapping[str, int]) -> ir.Model:
    """Inline functions, raise old operator sets, pin and infer shapes, drop what is unused."""
    inline = common.InlinePass(criteria=lambda function: function.domain != DOMAIN)
    model = inline(model).model
    passes.RaiseOpsetPass()(model)
    _pin_dimensions(model, input_dims)
    model = passes.InferShapesPass()(model).model
    common.RemoveUnusedNodesPass()(model)  # a layer that nothing reads is none
    return model


def lower(model: ir.Model, finder: passes.TileFinder) -> ir.Model:
    """Detect tiles and rewrite Gemm, MatMul and Conv to `ai.tbn` operators."""
    finder.opset = model.opset_imports.get("", 1)
    order = {node: index for index, node in enumerate(model.graph.all_nodes())}
    microsoft = passes.nodes_of(model, *_UNSUPPORTED_IN_MICROSOFT, domain="com.microsoft")
    for node in (*passes.nodes_of(model, *_UNSUPPORTED), *microsoft):
        finder.refuse(node, f"{node.op_type} is not lowered; only Gemm, MatMul and Conv are")
    for lowering in (passes.LowerGemmPass, passes.LowerMatMulPass, passes.LowerConvPass):
        lowering(finder)(model)
    finder.layers.sort(key=lambda layer: order[layer.node])
    return model


def optimise(model: ir.Model) -> ir.Model:
    """Fuse epilogues, share tiles, add function bodies and drop what nothing uses any more."""
    if not any(True for _ in passes.tiled_nodes(model)):
        return model
    opset = model.opset_imports.get("", 1)
    for step in (
        common.RemoveUnusedNodesPass(),
        passes.FuseBiasPass(opset),
        passes.FoldBatchNormPass(opset),
        passes.FuseActivationPass(opset),
        passes.ShareTilesPass(),
        passes.AddFunctionBodiesPass(),
        common.RemoveUnusedNodesPass(),
        passes.OrderInitializersPass(),
        common.NameFixPass(),
    ):
        step(model)
    return model


def _pin_dimensions(model: ir.Model, input_dims: Mapping[str, int]) -> None:
    names = {
        dim.value
        for value in model.graph.inputs
        if value.shape is not None
        for dim in value.shape
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None
    }
    for name, extent in input_dims.items():
        if name not in names:
            known = ", ".join(sorted(clean(n, 40) for n in names)) or "none"
            raise UsageError(f"no input dimension {clean(name, 40)!r}; the model has: {known}")
        if extent < 1:
            raise UsageError(f"input dimension {clean(name, 40)!r} must be 1 or more")
    if not input_dims:
        return
    for graph in model.graphs():
        outputs = (output for node in graph for output in node.outputs)
        for value in (*graph.inputs, *outputs):
            _pin_shape(value, input_dims)


def _pin_shape(value: ir.Value, input_dims: Mapping[str, int]) -> None:
    if value.shape is None:
        return
    value.shape = ir.Shape(
        [
            input_dims.get(dim.value or "", dim) if isinstance(dim, ir.SymbolicDim) else dim
            for dim in value.shape
        ]
    )
