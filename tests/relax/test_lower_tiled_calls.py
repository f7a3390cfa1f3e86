"""LowerTiledCalls: only distinct rows are computed and nothing has the weight's size."""

import numpy as np
import pytest
import tvm
from helpers.relax_calls import operators
from relax_modules import OUTPUTS, conv, gemm, kernels, run
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_compile.errors import TbnError
from tbn_compile.passes.relax import (
    CONV,
    GEMM,
    LowerTiledCalls,
    Step,
    tiled_binary_conv,
    tiled_binary_gemm,
)
from tbn_compile.tile import pack_bits


@I.ir_module
class Mixed:
    @R.function
    def main(x: R.Tensor(("m", 4), "float32"), image: R.Tensor((1, 4, 3, 3), "float32")):
        with R.dataflow():
            y = gemm(x, [Step("clip", bounds=(0.0, 1.0))])
            softmax = R.nn.softmax(y)
            channels = conv(image)
            z = (softmax, channels)
            R.output(z)
        return z


def test_lowers_tiled_calls_alone():
    lowered = LowerTiledCalls()(Mixed)
    assert operators(Mixed) == [GEMM, "relax.nn.softmax", CONV]
    assert operators(lowered) == ["tiled_binary_gemm", "relax.nn.softmax", "tiled_binary_conv"]
    assert relax.analysis.check_well_formed(lowered)


def test_legalize_ops_gives_the_same_kernels():
    lowered = kernels(LowerTiledCalls()(Mixed))
    legal = kernels(relax.transform.LegalizeOps()(Mixed))
    for name in ("tiled_binary_gemm", "tiled_binary_conv"):
        tvm.ir.assert_structural_equal(lowered[name], legal[name])


@pytest.mark.parametrize(
    ("attributes", "stages"),
    [
        # Three of six rows are distinct.
        ({"weight_shape": (6, 8), "tile_length": 24, "scale_length": 48}, {"product": (2, 3)}),
        # Three of six rows are distinct, and they have three distinct columns.
        (
            {"weight_shape": (6, 8), "tile_length": 3, "scale_length": 48},
            {"folded": (2, 3), "product": (2, 3)},
        ),
        # Rows of the [K, N] weight repeat along K.
        (
            {"weight_shape": (8, 6), "layout": "KN", "tile_length": 12, "scale_length": 48},
            {"folded": (2, 2), "product": (2, 6)},
        ),
        # The scale changes in the middle of a row that eight rows share.
        (
            {"weight_shape": (16, 8), "tile_length": 16, "scale_length": 4, "scales": 32},
            {"product": (2, 2, 2)},
        ),
        # Nothing repeats.
        ({"weight_shape": (6, 8), "tile_length": 47, "scale_length": 48}, {"product": (2, 6)}),
    ],
)
def test_stages_follow_the_reuse_plan(attributes, stages):
    assert stage_shapes(tiled_binary_gemm, (2, 8), attributes) == stages


def test_stages_of_a_grouped_convolution():
    attributes = {
        "weight_shape": (8, 2, 3, 3),
        "tile_length": 36,
        "scale_length": 8 * 18,
        "groups": 2,
        "pads": (1, 1, 1, 1),
    }
    found = stage_shapes(tiled_binary_conv, (1, 4, 5, 5), attributes)
    assert found == {"padded": (1, 4, 7, 7), "product": (1, 4, 5, 5)}


def stage_shapes(make, shape, attributes):
    """The intermediate buffers of a layer's kernel."""
    attributes = dict(attributes)
    scale = np.ones(attributes.pop("scales", 1), np.float32)
    tile = pack_bits(np.random.default_rng(0).integers(0, 2, attributes["tile_length"]))
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        call = make(x, relax.const(tile), relax.const(scale), **attributes)
        builder.emit_func_output(builder.emit(call))
    (kernel,) = kernels(LowerTiledCalls()(builder.get())).values()
    buffers = kernel.body.block.alloc_buffers
    return {buffer.name: tuple(int(extent) for extent in buffer.shape) for buffer in buffers}


def test_standard_passes_keep_working():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor(("m", 4), "float32")):
            unused = gemm(x)
            y = gemm(x)
            z = R.nn.softmax(R.nn.silu(y))
            return z

    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    expected = run(Module, x)
    passes = relax.transform
    module = passes.DeadCodeElimination()(passes.ConvertToDataflow()(Module))
    assert operators(module).count(GEMM) == 1
    module = passes.FoldConstant()(module)
    assert operators(module).count(GEMM) == 1
    module = passes.AnnotateTIROpPattern()(passes.LegalizeOps()(module))
    module = passes.FuseTIR()(passes.FuseOps()(passes.FoldConstant()(module)))
    assert set(kernels(module)) == {"fused_tiled_binary_gemm_silu", "softmax"}
    np.testing.assert_allclose(run(module, x), expected, rtol=1e-5)
    assert largest_constant(module) <= OUTPUTS


def largest_constant(module):
    sizes = [0]

    def visit(expression):
        if isinstance(expression, tvm.ir.GenericConst):
            sizes.append(expression.value.numpy().size)

    relax.analysis.post_order_visit(module["main"], visit)
    return max(sizes)


def test_calls_match_dataflow_patterns():
    from tvm.relax.dpl import is_const, is_op, wildcard

    pattern = is_op(GEMM)(wildcard(), is_const(), is_const())
    binding = Mixed["main"].body.blocks[0].bindings[0]
    assert pattern.match(binding.value)
    assert list(binding.value.attrs["weight_shape"]) == [6, 4]
    assert binding.value.attrs["distinct_rows"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_shape": (2**60, 4)}, "must hold 1 to"),
        ({"tile_length": 13}, "is not"),
        ({"offset": 12}, "offset 12 must be 0 to 11"),
        ({"layout": "NKN"}, "use 'NK' or 'KN'"),
        ({"weight_shape": (6, 5)}, "X has 4 inputs"),
        ({"epilogue": [Step("clip", bounds=(1.0, 0.0))]}, "ordered"),
        ({"epilogue": [Step("softmax")]}, "must be one of"),
    ],
)
def test_what_is_no_layer_is_refused(change, message):
    arguments = {"weight_shape": (6, 4), "tile_length": 12, "scale_length": 24, **change}
    x = relax.Var("x", relax.TensorType((2, 4), "float32"))
    tile = relax.const(np.zeros(2, np.uint8))
    if message == "is not":
        tile, message = relax.const(np.zeros(1, np.uint8)), "13 bits need"
    with pytest.raises(TbnError, match=message):
        tiled_binary_gemm(x, tile, relax.const(np.ones(1, np.float32)), **arguments)
