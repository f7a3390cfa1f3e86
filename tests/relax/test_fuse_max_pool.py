"""FuseMaxPool: a layer before pooling stores the greatest elements only."""

import numpy as np
import pytest
import tvm
from relax_modules import ROW_SCALES, conv, run
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_compile.passes.relax import (
    FuseActivation,
    FuseMaxPool,
    LowerTiledCalls,
    Quantization,
    Step,
)

RELU = Step("clip", bounds=(0.0, np.inf))


def assert_same_numbers(fused, before, shape=(2, 4, 7, 6)):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(run(LowerTiledCalls()(fused), x), run(before, x))


def test_pooling_is_the_last_step():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4, 7, 6), "float32")):
            with R.dataflow():
                y = R.nn.max_pool2d(R.nn.relu(conv(x, scale=ROW_SCALES)), (2, 3), (2, 3))
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((2, 4, 7, 6), "float32")):
            with R.dataflow():
                y = conv(x, [RELU], ROW_SCALES, pool=(2, 3))
                R.output(y)
            return y

    fused = FuseMaxPool()(FuseActivation()(Before))
    tvm.ir.assert_structural_equal(fused, After)
    assert_same_numbers(fused, Before)


def test_nothing_fuses_after_pooling():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4, 7, 6), "float32")):
            with R.dataflow():
                y = R.nn.relu(conv(x, pool=(2, 2)))
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(FuseActivation()(Before), Before)


def test_rounded_results_are_pooled_too():
    quantization = {
        "input_quantization": Quantization(0.1, 3, "int8"),
        "output_quantization": Quantization(0.2, -5, "int8"),
    }

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 6, 6), "int8")):
            with R.dataflow():
                y = R.nn.max_pool2d(conv(x, **quantization), (2, 2), (2, 2))
                R.output(y)
            return y

    @I.ir_module
    class After:
        @R.function
        def main(x: R.Tensor((1, 4, 6, 6), "int8")):
            with R.dataflow():
                y = conv(x, **quantization, pool=(2, 2))
                R.output(y)
            return y

    fused = FuseMaxPool()(Before)
    tvm.ir.assert_structural_equal(fused, After)
    x = np.random.default_rng(0).integers(-128, 128, (1, 4, 6, 6)).astype(np.int8)
    np.testing.assert_array_equal(run(LowerTiledCalls()(fused), x), run(Before, x))


@pytest.mark.parametrize(
    "options",
    [
        {"strides": (1, 1)},
        {"strides": (3, 3)},
        {"strides": (2, 2), "padding": (1, 1)},
        {"strides": (2, 2), "dilation": (2, 2)},
        {"strides": (2, 2), "ceil_mode": True},
    ],
)
def test_overlaps_gaps_and_edges_stay(options):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4, 7, 6), "float32")):
            with R.dataflow():
                y = R.nn.max_pool2d(conv(x), (2, 2), **options)
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(FuseMaxPool()(Before), Before)


def test_a_shared_result_stays():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 4, 7, 6), "float32")):
            with R.dataflow():
                y = conv(x)
                z = R.nn.max_pool2d(y, (2, 2), (2, 2))
                R.output(y, z)
            return (y, z)

    tvm.ir.assert_structural_equal(FuseMaxPool()(Before), Before)
