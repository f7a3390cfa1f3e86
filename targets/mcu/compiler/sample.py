"""Inputs and expected outputs that an archive carries for a self-test on the device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tbn_compile.sessions import CheckedModel, Session, check_model, random_inputs
from tbn_compile.targets.mcu.program import Sample

_SEED = 0


def make_sample(source: Path, graph: ir.Model, input_dims: Mapping[str, int]) -> Sample:
    """Random inputs, and what the original model gives for them in ONNX Runtime.

    Args:
        source: the original model.
        graph: the lowered one, which fixes the order of inputs and outputs.
        input_dims: extents of symbolic dimensions.

    Raises:
        ModelError: if ONNX Runtime cannot run the model.
    """
    original = check_model(source)
    lowered = CheckedModel(source, graph)
    inputs = random_inputs(original, _SEED, dict(input_dims))
    outputs = Session(original).run(inputs)
    return Sample(
        tuple(np.asarray(inputs[name], order="C") for name in lowered.input_names),
        tuple(np.asarray(outputs[name], order="C") for name in lowered.output_names),
    )
