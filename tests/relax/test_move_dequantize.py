"""MoveDequantize: operators that move or compare values run on integers."""

import numpy as np
import pytest
import tvm
from relax_modules import run
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_compile.passes.relax import MoveDequantize

SCALE, ZERO_POINT = relax.const(0.5, "float32"), relax.const(-3, "int8")
MOVE = tvm.transform.Sequential([MoveDequantize(), relax.transform.CanonicalizeBindings()])


def dequantize(q, scale=SCALE, zero_point=ZERO_POINT, axis=-1):
    return relax.op.dequantize(q, scale, zero_point, axis)


def quantize(x, scale=SCALE, zero_point=ZERO_POINT, axis=-1):
    return relax.op.quantize(x, scale, zero_point, axis, "int8")


@pytest.mark.parametrize(
    "move",
    [
        lambda y: relax.op.reshape(y, (2, 64)),
        relax.op.flatten,
        lambda y: relax.op.permute_dims(y, (0, 2, 3, 1)),
        lambda y: relax.op.expand_dims(y, 1),
        lambda y: relax.op.strided_slice(y, [3], [1], [3]),
        lambda y: relax.op.max(y, [2, 3]),
        lambda y: relax.op.nn.max_pool2d(y, (2, 2), (1, 1), (1, 1, 0, 0)),
    ],
)
def test_moves(move):
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((2, 4, 4, 4), "int8")):
            with R.dataflow():
                x = dequantize(q)
                z = move(x)
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(q: R.Tensor((2, 4, 4, 4), "int8")):
            with R.dataflow():
                moved = move(q)
                z = dequantize(moved)
                R.output(z)
            return z

    moved = MOVE(Before)
    tvm.ir.assert_structural_equal(moved, After)
    q = np.random.default_rng(0).integers(-128, 128, (2, 4, 4, 4)).astype(np.int8)
    np.testing.assert_array_equal(run(moved, q), run(Before, q))


def test_relu_is_a_maximum_with_the_zero_point_and_equal_quantization_vanishes():
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((2, 3, 4), "int8")):
            with R.dataflow():
                rectified = quantize(R.nn.relu(dequantize(q)))
                z = quantize(R.reshape(dequantize(rectified), R.shape([6, 4])))
                R.output(z)
            return z

    @I.ir_module
    class After:
        @R.function
        def main(q: R.Tensor((2, 3, 4), "int8")):
            with R.dataflow():
                rectified = R.maximum(q, R.const(-3, "int8"))
                z = R.reshape(rectified, R.shape([6, 4]))
                R.output(z)
            return z

    moved = MOVE(Before)
    tvm.ir.assert_structural_equal(moved, After)
    q = np.arange(-12, 12, dtype=np.int8).reshape(2, 3, 4)
    np.testing.assert_array_equal(run(moved, q), run(Before, q))


def test_what_computes_stays():
    @I.ir_module
    class Before:
        @R.function
        def main(q: R.Tensor((2, 4), "int8"), scale: R.Tensor((), "float32")):
            with R.dataflow():
                doubled = R.add(dequantize(q), dequantize(q))
                other_scale = quantize(dequantize(q), relax.const(0.25, "float32"))
                per_channel = R.nn.relu(dequantize(q, relax.const(np.ones(4, np.float32))))
                computed = R.nn.relu(dequantize(q, scale))
                z = (doubled, other_scale, per_channel, computed)
                R.output(z)
            return z

    tvm.ir.assert_structural_equal(MoveDequantize()(Before), Before)
