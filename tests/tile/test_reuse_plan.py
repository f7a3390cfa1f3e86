"""Reuse plans, executed: every plan must compute the same product, and never at a higher cost."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.weights import random_signs, tiled_weights
from hypothesis import given
from hypothesis import strategies as st

from tbn_compile.tile import TiledBinaryWeight, pack_bits


def execute(weight, plan, x):
    """Fold, multiply distinct rows, add segments and write copies, as a kernel would.

    Args:
        weight: the weight.
        plan: its plan.
        x: float64[groups, K].
    """
    signs = np.where(weight.signs(), 1.0, -1.0).reshape(weight.shape)
    scales = weight.scales().astype(np.float64).reshape(weight.shape)
    if weight.layout == "KN":
        signs, scales = signs.T, scales.T
    signs = signs.reshape(weight.outputs, -1)
    scales = scales.reshape(weight.outputs, -1)
    per_group = zip(np.split(signs, plan.groups), np.split(scales, plan.groups), x, strict=True)
    return np.concatenate([_execute_group(plan, *group) for group in per_group])


def _execute_group(plan, signs, scales, x):
    rows, columns = signs.shape
    distinct, folded = plan.distinct_rows, plan.distinct_columns
    if (rows, columns) == (distinct, folded):
        return (signs * scales) @ x
    core = signs[:distinct, :folded]
    np.testing.assert_array_equal(
        signs, np.resize(np.tile(core, columns // folded + 1)[:, :columns], signs.shape)
    )
    if plan.segments > 1:
        assert folded == columns, "a row with several scales cannot be folded"
        return _execute_segments(plan, core, scales, x)
    per_output = (scales == scales[:, :1]).all()
    assert per_output or (scales == scales[:1]).all(), "a scale must follow outputs or inputs"
    inputs = x if per_output else x * scales[0]
    sums = np.zeros(folded)
    np.add.at(sums, np.arange(columns) % folded, inputs)
    once = core @ sums
    copies = np.resize(once, rows)
    return copies * scales[:, 0] if per_output else copies


def _execute_segments(plan, core, scales, x):
    rows, columns = scales.shape
    distinct = plan.distinct_rows
    result = np.zeros(rows)
    for first in range(distinct):
        copies = scales[first::distinct]
        cuts = [0, *(np.flatnonzero((copies[:, 1:] != copies[:, :-1]).any(axis=0)) + 1), columns]
        assert len(cuts) - 1 <= plan.segments
        for start, stop in pairwise(cuts):
            partial = core[first, start:stop] @ x[start:stop]
            result[first::distinct] += copies[:, start] * partial
    return result


@given(tiled_weights(), st.data(), st.booleans())
def test_a_plan_computes_the_product_and_never_costs_more(weight, data, foldable):
    groups = 1
    if weight.layout == "NK":
        groups = data.draw(
            st.sampled_from([g for g in range(1, weight.outputs + 1) if weight.outputs % g == 0])
        )
    plan = weight.plan_reuse(groups, foldable)
    assert plan.multiply_adds <= plan.dense_multiply_adds
    assert plan.dense_multiply_adds == weight.size
    assert foldable or plan.distinct_columns == plan.columns
    x = np.random.default_rng(0).standard_normal((groups, weight.inputs))
    rows = weight.matrix().astype(np.float64).reshape(groups, -1, weight.inputs)
    expected = np.einsum("gnk,gk->gn", rows, x).reshape(-1)
    np.testing.assert_allclose(execute(weight, plan, x), expected, rtol=1e-9, atol=1e-9)


def _tiled(shape, length, *, layout="NK", scale=(0.5,), scale_length=None, **fields):
    return TiledBinaryWeight(
        bits=pack_bits(random_signs(3, length)),
        shape=shape,
        tile_length=length,
        scale=np.asarray(scale, np.float32),
        scale_length=scale_length or length,
        layout=layout,
        **fields,
    )


@pytest.mark.parametrize(
    ("weight", "kind", "cost"),
    [
        (_tiled((128, 784), 128 * 784 // 4), "rows", 32 * 784 + 128),
        (_tiled((128, 784), 784), "rows", 784 + 128),
        (_tiled((64, 512), 32), "rows", 1 * 512 + 64),
        (_tiled((64, 512), 48), "blocks", 512 + 3 * 48 + 64),
        (_tiled((10, 128), 1280), "expand", 1280),
        (_tiled((10, 128), 640 - 1), "expand", 1280),
        (_tiled((512, 64), 512 * 16, layout="KN"), "columns", 512 + 16 * 64 * 8 * 1),
        (_tiled((256, 64), 256 * 16, layout="KN"), "columns", 256 + 64 * 64),
        (_tiled((256, 64), 32, layout="KN"), "columns", 256 + 64 * 1),
        (_tiled((64, 32), 64 * 32 // 8, scale=np.ones(8)), "rows", 8 * 32 + 64),
        (_tiled((64, 32), 16, scale=range(1, 129)), "rows", 1 * 32 + 64 * 2),
    ],
)
def test_known_plans(weight, kind, cost):
    plan = weight.plan_reuse()
    assert (plan.kind, plan.multiply_adds) == (kind, cost)


def test_only_rows_of_one_group_share_work():
    weight = _tiled((64, 9), 64 * 9 // 8)
    assert weight.plan_reuse(groups=1).distinct_rows == 8
    assert weight.plan_reuse(groups=16).kind == "expand"
    assert weight.plan_reuse(groups=4).multiply_adds == 4 * (8 * 9 + 16)


def test_scales_that_do_not_repeat_with_the_tile_are_not_shared_by_its_rows():
    weight = _tiled((8, 20), 40, scale=range(1, 8), scale_length=25)
    x = np.arange(20.0)[None]
    plan = weight.plan_reuse()
    assert plan.segments == 4
    np.testing.assert_allclose(execute(weight, plan, x), weight.matrix().astype(float) @ x[0])
