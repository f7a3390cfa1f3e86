"""FoldBatchNorm: gamma / sigma joins the scale, negative gamma too."""

import numpy as np
import tvm
from relax_modules import OUTPUTS, ROW_SCALES, constant, conv, gemm, run
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_compile.passes.relax import FoldBatchNorm, Step

GAMMA = np.array([1, -2, 3, -4, 5, 6], np.float32)
BETA = np.array([6, 5, 4, 3, 2, 1], np.float32)
MEAN = np.array([1, 0, -1, 2, 0, 3], np.float32)
VARIANCE = np.array([1, 4, 16, 4, 1, 4], np.float32)
FACTOR = GAMMA / np.sqrt(VARIANCE)
SHIFTED_BIAS = Step("bias", operand=constant(*(BETA + (2 - MEAN) * FACTOR)))


def batch_norm(y, axis=1, training=False):
    statistics = [relax.const(each) for each in (GAMMA, BETA, MEAN, VARIANCE)]
    return relax.op.nn.batch_norm(y, *statistics, axis=axis, epsilon=0.0, training=training)


def test_channels_of_a_convolution():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4, 3, 3), "float32")):
            with R.dataflow():
                y = conv(x, [Step("bias", operand=constant(*[2.0] * OUTPUTS))], ROW_SCALES)
                normalised = batch_norm(y)
                z = normalised[0]
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((2, 4, 3, 3), "float32")):
            with R.dataflow():
                z = conv(x, [SHIFTED_BIAS], ROW_SCALES * FACTOR)
                R.output(z)
            return z

    fused = FoldBatchNorm()(Before)
    tvm.ir.assert_structural_equal(fused, After)
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(run(fused, x), run(Before, x), rtol=1e-4, atol=1e-4)


def test_outputs_of_a_gemm_get_one_scale_each():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32")):
            with R.dataflow():
                z = batch_norm(gemm(x))[0]
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32")):
            with R.dataflow():
                z = gemm(x, [Step("bias", operand=constant(*(BETA - MEAN * FACTOR)))], FACTOR / 2)
                R.output(z)
            return z

    tvm.ir.assert_structural_equal(FoldBatchNorm()(Before), After)


def test_another_axis_training_and_used_statistics_stay():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((6, 6, 4), "float32")):
            with R.dataflow():
                other_axis = batch_norm(gemm(x))[0]
                training = batch_norm(gemm(x), axis=2, training=True)[0]
                statistics = batch_norm(gemm(x), axis=2)
                z = (other_axis, training, statistics[0], statistics[1])
                R.output(z)
            return z

    tvm.ir.assert_structural_equal(FoldBatchNorm()(Before), Before)
