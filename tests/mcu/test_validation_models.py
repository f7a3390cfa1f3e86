"""Whole models on every core that is emulated, against ONNX Runtime."""

import pytest

from tbn_compile import compile_model
from tbn_compile.compiler import CompileOptions
from tbn_compile.targets.mcu.validation import validate_archive

BOARDS = {
    "cortex-m0plus": "mps2-an385", "cortex-m3": "mps2-an385", "cortex-m4": "mps2-an386",
    "cortex-m7": "mps2-an500", "cortex-m33": "mps2-an505", "cortex-m55": "mps3-an547",
    "rv32imc": "virt-rv32imc", "rv32imafc": "virt-rv32imafc", "c": None,
}  # fmt: skip


@pytest.mark.parametrize("core", BOARDS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "residual", "series"])
def test_every_core_computes_what_the_model_does(models, tmp_path, name, core):
    dims = {"batch": 1}
    archive = tmp_path / f"{name}.tar"
    compile_model(models[name], core, archive, CompileOptions(dims))
    report = validate_archive(models[name], archive, BOARDS[core], input_sets=2, input_dims=dims)
    assert report.passed
    assert all(output.tolerance == 1e-5 for output in report.outputs)


def test_the_mlp_runs_on_a_microbit(models, tmp_path):
    archive = tmp_path / "mlp.tar"
    compile_model(models["mlp"], "cortex-m0plus", archive, CompileOptions({"batch": 1}))
    assert validate_archive(models["mlp"], archive, "microbit", input_sets=1).passed
