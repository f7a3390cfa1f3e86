"""FuseAffine: arithmetic with constants goes into scale and bias."""

import numpy as np
import tvm
from helpers.relax_calls import operators
from relax_modules import ONE_SCALE, OUTPUTS, ROW_SCALES, constant, conv, gemm, run
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_compile.passes.relax import CONV, FuseAffine, Step

SHIFTS = np.array([1, -2, 3, -4, 5, -6], np.float32)


def bias(array):
    return Step("bias", operand=relax.const(array.astype(np.float32)))


def test_chain_on_a_gemm_of_dynamic_batch():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32")):
            with R.dataflow():
                y = gemm(x, scale=ROW_SCALES)
                shifted = R.subtract(y, relax.const(SHIFTS))
                halved = R.divide(shifted, R.const(2.0))
                scaled = R.multiply(relax.const(SHIFTS), halved)
                z = R.add(scaled, R.const(1.0))
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32")):
            with R.dataflow():
                z = gemm(x, [bias(1 - SHIFTS * SHIFTS / 2)], ROW_SCALES * SHIFTS / 2)
                R.output(z)
            return z

    tvm.ir.assert_structural_equal(FuseAffine()(Before), After)


def test_constant_minus_result_flips_the_signs():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")):
            with R.dataflow():
                y = gemm(x)
                z = R.subtract(relax.const(SHIFTS), y)
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((2, 4), "float32")):
            with R.dataflow():
                z = gemm(x, [bias(SHIFTS)], -ONE_SCALE)
                R.output(z)
            return z

    tvm.ir.assert_structural_equal(FuseAffine()(Before), After)


def test_channels_of_a_convolution():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4, 3, 5), "float32")):
            with R.dataflow():
                y = conv(x)
                z = R.add(y, relax.const(SHIFTS.reshape(6, 1, 1)))
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((2, 4, 3, 5), "float32")):
            with R.dataflow():
                z = conv(x, [bias(SHIFTS)])
                R.output(z)
            return z

    tvm.ir.assert_structural_equal(FuseAffine()(Before), After)


def test_constants_bound_to_variables():
    """What DecomposeOpsForInference and FoldConstant leave of a batch norm fuses too."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4, 3, 5), "float32")):
            with R.dataflow():
                y = conv(x)
                normalised = batch_norm(y)
                z = normalised[0]
                R.output(z)
            return z

    passes = relax.transform
    decomposed = passes.FoldConstant()(passes.DecomposeOpsForInference()(Before))
    fused = FuseAffine()(decomposed)
    assert operators(fused) == [CONV]
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(run(fused, x), run(Before, x), rtol=1e-4, atol=1e-4)


def batch_norm(y):
    gamma, beta, mean, variance = SHIFTS, SHIFTS + 1, SHIFTS / 2, np.abs(SHIFTS)
    return relax.op.nn.batch_norm(
        y, *(relax.const(each) for each in (gamma, beta, mean, variance)), axis=1, training=False
    )


def test_what_does_not_fit_stays():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((6, 4), "float32"), shift: R.Tensor((6,), "float32")):
            with R.dataflow():
                computed = R.add(gemm(x), shift)
                along_rows = R.add(gemm(x), relax.const(SHIFTS.reshape(6, 1)))
                wider = R.add(gemm(x), relax.const(SHIFTS.reshape(1, 1, 6)))
                after_clip = R.add(gemm(x, [Step("clip", bounds=(0.0, 1.0))]), R.const(1.0))
                infinite = R.divide(gemm(x), constant(1, 2, 0, 4, 5, 6))
                reciprocal = R.divide(relax.const(SHIFTS), gemm(x))
                twice = gemm(x)
                also = R.add(twice, R.const(1.0))
                z = (computed, along_rows, wider, after_clip, infinite, reciprocal, twice, also)
                R.output(z)
            return z

    tvm.ir.assert_structural_equal(FuseAffine()(Before), Before)


def test_results_stay_the_same():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32")):
            with R.dataflow():
                y = gemm(x, [bias(SHIFTS)])
                z = R.subtract(R.const(1.0), R.multiply(y, relax.const(ROW_SCALES)))
                R.output(z)
            return z

    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    fused = FuseAffine()(Before)
    expected = run(Before, x)
    assert expected.shape == (3, OUTPUTS)
    np.testing.assert_allclose(run(fused, x), expected, rtol=1e-5, atol=1e-5)
