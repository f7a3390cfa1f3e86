"""WidenSums: 16-bit products, pools and reductions add up in float32."""

import numpy as np
import tvm
from relax_modules import run
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_compile.passes.relax import WidenSums


def test_products_keep_narrow_operands():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 8), "float16"), w: R.Tensor((8, 4), "float16")):
            with R.dataflow():
                y = R.matmul(x, w)
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((2, 8), "float16"), w: R.Tensor((8, 4), "float16")):
            with R.dataflow():
                wide = R.matmul(x, w, out_dtype="float32")
                y = R.astype(wide, "float16")
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(WidenSums()(Before), After)


def test_convolutions_keep_their_attributes():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 9, 9), "bfloat16"), w: R.Tensor((6, 2, 3, 3), "bfloat16")):
            with R.dataflow():
                y = R.nn.conv2d(x, w, strides=(2, 1), padding=(1, 0), groups=2, dilation=(1, 2))
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4, 9, 9), "bfloat16"), w: R.Tensor((6, 2, 3, 3), "bfloat16")):
            with R.dataflow():
                wide = R.nn.conv2d(
                    x,
                    w,
                    strides=(2, 1),
                    padding=(1, 0),
                    groups=2,
                    dilation=(1, 2),
                    out_dtype="float32",
                )
                y = R.astype(wide, "bfloat16")
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(WidenSums()(Before), After)


def test_reductions_widen_their_input():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 8), "float16")):
            with R.dataflow():
                y = R.nn.softmax(x, axis=-1)
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((2, 8), "float16")):
            with R.dataflow():
                wide = R.astype(x, "float32")
                sums = R.nn.softmax(wide, axis=-1)
                y = R.astype(sums, "float16")
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(WidenSums()(Before), After)


def test_other_types_stay():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 8), "int32")):
            with R.dataflow():
                y = R.sum(x, axis=[1])
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(WidenSums()(Before), Before)


def test_a_long_sum_is_exact_to_one_rounding():
    @I.ir_module
    class Mean:
        @R.function
        def main(x: R.Tensor((1, 20000), "float16")):
            with R.dataflow():
                y = R.mean(x, axis=[1])
                R.output(y)
            return y

    x = np.random.default_rng(0).random((1, 20000)).astype(np.float16)
    expected = x.astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(run(WidenSums()(Mean), x), expected, rtol=2**-11)
