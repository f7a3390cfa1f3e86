"""FuseResidual: the sum with another activation is the epilogue's step."""

import numpy as np
import tvm
from relax_modules import conv, gemm, run
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_compile.passes.relax import FuseActivation, FuseResidual, Step


def test_both_orders():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32"), other: R.Tensor(("m", 6), "float32")):
            with R.dataflow():
                left = R.add(gemm(x), other)
                right = R.add(R.negative(other), gemm(x))
                both = R.add(gemm(x), gemm(x))
                R.output(left, right, both)
            return (left, right, both)

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32"), other: R.Tensor(("m", 6), "float32")):
            with R.dataflow():
                left = gemm(x, [Step("residual", operand=other)])
                negative = R.negative(other)
                right = gemm(x, [Step("residual", operand=negative)])
                second = gemm(x)
                both = gemm(x, [Step("residual", operand=second)])
                R.output(left, right, both)
            return (left, right, both)

    fused = FuseResidual()(Before)
    tvm.ir.assert_structural_equal(fused, After)
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal((3, n)).astype(np.float32) for n in (4, 6)]
    for actual, expected in zip(run(fused, *feeds), run(Before, *feeds), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_residual_block_ends_in_relu():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 5), "float32"), y: R.Tensor((1, 6, 5, 5), "float32")):
            with R.dataflow():
                z = R.nn.relu(R.add(y, conv(x)))
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4, 5, 5), "float32"), y: R.Tensor((1, 6, 5, 5), "float32")):
            with R.dataflow():
                z = conv(x, [Step("residual", operand=y), Step("clip", bounds=(0.0, np.inf))])
                R.output(z)
            return z

    fused = FuseActivation()(FuseResidual()(Before))
    tvm.ir.assert_structural_equal(fused, After)
    rng = np.random.default_rng(1)
    feeds = [rng.standard_normal((1, n, 5, 5)).astype(np.float32) for n in (4, 6)]
    np.testing.assert_allclose(run(fused, *feeds), run(Before, *feeds), rtol=1e-5, atol=1e-5)


def test_broadcast_doubling_and_shared_results_stay():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor(("m", 4), "float32"),
            row: R.Tensor((1, 6), "float32"),
            longer: R.Tensor(("n", 6), "float32"),
        ):
            with R.dataflow():
                broadcast = R.add(gemm(x), row)
                y = gemm(x)
                doubled = R.add(y, y)
                z = (broadcast, doubled)
                R.output(z)
            return z

    tvm.ir.assert_structural_equal(FuseResidual()(Before), Before)
