"""FuseActivation: elementwise activations are steps of the epilogue."""

import numpy as np
import pytest
import tvm
from relax_modules import gemm, run
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_compile.passes.relax import FuseActivation, Step

INF = float("inf")


@pytest.mark.parametrize(
    ("activate", "step"),
    [
        (relax.op.nn.relu, Step("clip", bounds=(0.0, INF))),
        (relax.op.nn.gelu, Step("gelu")),
        (relax.op.nn.gelu_tanh, Step("gelu_tanh")),
        (lambda y: relax.op.clip(y, 0, 6), Step("clip", bounds=(0.0, 6.0))),
        (lambda y: relax.op.maximum(y, relax.const(-1.0)), Step("clip", bounds=(-1.0, INF))),
        (lambda y: relax.op.minimum(relax.const(2.0), y), Step("clip", bounds=(-INF, 2.0))),
    ],
)
def test_fuses(activate, step):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32")):
            with R.dataflow():
                y = gemm(x)
                z = activate(y)
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32")):
            with R.dataflow():
                z = gemm(x, [step])
                R.output(z)
            return z

    fused = FuseActivation()(Before)
    tvm.ir.assert_structural_equal(fused, After)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32) * 4
    np.testing.assert_allclose(run(fused, x), run(Before, x), rtol=1e-5, atol=1e-5)


def test_chain_without_a_dataflow_block():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32")):
            y = gemm(x)
            z = R.nn.gelu(R.nn.relu(y))
            return z

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32")):
            z = gemm(x, [Step("clip", bounds=(0.0, INF)), Step("gelu")])
            return z

    tvm.ir.assert_structural_equal(FuseActivation()(Before), After)


def test_softmax_empty_bounds_and_shared_results_stay():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 4), "float32")):
            with R.dataflow():
                softmax = R.nn.softmax(gemm(x))
                empty = R.clip(gemm(x), 1.0, 0.0)
                wider = R.maximum(gemm(x), R.const(np.zeros((1, 1, 1)), "float32"))
                shared = gemm(x)
                z = (softmax, empty, wider, shared, R.nn.relu(shared))
                R.output(z)
            return z

    tvm.ir.assert_structural_equal(FuseActivation()(Before), Before)


def test_nan_passes_through():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")):
            z = gemm(x, [Step("clip", bounds=(0.0, 6.0))])
            return z

    assert np.isnan(run(Module, np.full((1, 4), np.nan, np.float32))).all()
