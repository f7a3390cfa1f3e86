"""The tile data type against a plain transcription of its formula."""

import dataclasses

import numpy as np
import pytest
from helpers.weights import BFLOAT16, bits_of, expand_plainly, scales, seeds, tiled_weights
from hypothesis import given
from hypothesis import strategies as st

from tbn_compile.errors import TileError
from tbn_compile.tile import MAX_ELEMENTS, TiledBinaryWeight, pack_bits, unpack_bits


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packing_is_undone_by_unpacking(signs):
    bits = pack_bits(signs)
    assert bits.dtype == np.uint8
    assert bits.shape == (-(-len(signs) // 8),)
    assert unpack_bits(bits, len(signs)).tolist() == signs


def test_bits_are_packed_least_significant_first_and_padded_with_zeros():
    assert pack_bits([True, False, False, False, False, False, False, True, True]).tolist() == [
        0b1000_0001,
        0b0000_0001,
    ]


@given(tiled_weights())
def test_expand_equals_the_formula(weight):
    expected = expand_plainly(weight)
    dense = weight.expand()
    assert dense.dtype == weight.scale.dtype
    assert dense.shape == weight.shape
    np.testing.assert_array_equal(bits_of(dense), bits_of(expected))


@given(tiled_weights())
def test_matrix_has_outputs_first(weight):
    expected = expand_plainly(weight)
    expected = expected.T if weight.layout == "KN" else expected.reshape(weight.shape[0], -1)
    assert weight.matrix().shape == (weight.outputs, weight.inputs)
    np.testing.assert_array_equal(weight.matrix(), expected)


def test_long_runs_of_scale_cost_no_memory():
    weight = _weight(scale=np.float32([1, 2]), scale_length=2**33, scale_offset=2**33 - 5)
    assert weight.expand().reshape(-1).tolist() == expand_plainly(weight).reshape(-1).tolist()


@given(tiled_weights(), st.data())
def test_one_factor_per_output_scales_each_row(weight, data):
    factor = data.draw(scales(weight.outputs, dtypes=(weight.scale.dtype,)))
    try:
        scaled = weight.scaled(factor)
    except TileError as error:
        assert weight.layout == "KN"
        assert weight.scaling != "layer"
        assert "along K" in str(error)
        return
    expected = (weight.matrix() * factor[:, None]).astype(weight.scale.dtype)
    np.testing.assert_array_equal(scaled.matrix(), expected)
    assert scaled.tile_length == weight.tile_length
    np.testing.assert_array_equal(scaled.signs(), weight.signs())


@given(
    tiled_weights(), st.one_of(st.just(0.0), st.floats(0.125, 4, width=16), st.floats(-4, -0.125))
)
def test_one_factor_for_the_layer_scales_everything(weight, factor):
    scaled = weight.scaled(np.asarray(factor, dtype=np.float32))
    expected = (weight.matrix().astype(np.float32) * np.float32(factor)).astype(weight.scale.dtype)
    np.testing.assert_array_equal(scaled.matrix(), expected)
    assert scaled.scale.size == weight.scale.size


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(np.float16, 1e6), (np.float16, 1e-7), (np.float32, 1e40), (np.float32, 1e-45)],
)
def test_a_product_out_of_range_is_refused(dtype, factor):
    weight = _weight(scale=np.array([0.3], dtype))
    with pytest.raises(TileError, match="a scale of .* does not fit float"):
        weight.scaled(np.asarray(factor))
    with pytest.raises(TileError, match="a scale of .* does not fit float"):
        weight.scaled(np.full(2, factor))


def test_factors_must_fit_the_outputs():
    with pytest.raises(TileError, match=r"factor of shape \(3,\) does not fit 2 outputs"):
        _weight().scaled(np.ones(3, np.float32))


@given(tiled_weights(), seeds)
def test_equal_means_the_same_weight_however_it_is_stored(weight, seed):
    longer = dataclasses.replace(
        weight,
        bits=pack_bits(np.tile(unpack_bits(weight.bits, weight.tile_length), 3)),
        tile_length=3 * weight.tile_length,
    )
    assert longer == weight
    flipped = unpack_bits(weight.bits, weight.tile_length).copy()
    covered = (np.arange(weight.size) + weight.offset) % weight.tile_length
    position = int(covered[seed % weight.size])
    flipped[position] = ~flipped[position]
    changed = dataclasses.replace(weight, bits=pack_bits(flipped))
    assert changed != weight


def test_opposite_signs_and_scales_cancel():
    weight = _weight()
    opposite = dataclasses.replace(
        weight, bits=pack_bits(~unpack_bits(weight.bits, 6)), scale=-weight.scale
    )
    assert opposite == weight


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (3, 4)},
        {"scale": np.float32([2.0])},
        {"scale": np.float16([0.5])},
        {"offset": 1},
    ],
)
def test_any_other_weight_is_unequal(change):
    assert dataclasses.replace(_weight(), **change) != _weight()
    assert _weight() != "a weight"


def test_a_weight_cannot_be_hashed():
    with pytest.raises(TypeError, match="unhashable"):
        hash(_weight())


@pytest.mark.parametrize(
    ("change", "scaling"),
    [
        ({}, "layer"),
        ({"scale": np.ones(2, np.float32), "scale_length": 6}, "tile"),
        ({"scale": np.ones(2, np.float32), "scale_length": 6, "tile_length": 5}, "row"),
        ({"scale": np.ones(3, np.float32), "scale_length": 4, "tile_length": 4}, "tile"),
        ({"scale": np.ones(4, np.float32), "scale_length": 3}, "block"),
        ({"scale": np.ones(2, np.float32), "scale_length": 6, "scale_offset": 1}, "block"),
    ],
)
def test_scaling_names_what_shares_a_scale(change, scaling):
    bits = pack_bits(np.arange(change.get("tile_length", 6)) % 2 == 0)
    assert _weight(bits=bits, **change).scaling == scaling


def test_sizes_of_a_known_weight():
    weight = _weight()
    assert (weight.size, weight.outputs, weight.inputs, weight.repeats) == (12, 2, 6, 2.0)
    assert weight.stored_bytes == 1 + 4


def test_a_window_on_a_longer_tile_counts_as_one_repeat():
    weight = _weight(bits=pack_bits(np.ones(99)), tile_length=99, offset=98)
    assert weight.repeats == 1.0


_PROBLEMS = {
    "layout": ({"layout": "MN"}, "use 'NK' or 'KN'"),
    "one axis": ({"shape": (12,)}, "does not fit layout NK"),
    "three axes of KN": ({"shape": (2, 3, 2), "layout": "KN"}, "does not fit layout KN"),
    "no weights": ({"shape": (0, 6)}, "must hold 1 to"),
    "negative extent": ({"shape": (-2, -6)}, "must hold 1 to"),
    "huge": ({"shape": (2**60, 2**60)}, "must hold 1 to"),
    "no tile": ({"tile_length": 0}, "tile length 0"),
    "huge tile": ({"tile_length": MAX_ELEMENTS + 1}, "tile length"),
    "too few bytes": ({"tile_length": 9}, r"9 bits need uint8\[2\]"),
    "too many bytes": ({"bits": np.zeros(2, np.uint8)}, r"6 bits need uint8\[1\]"),
    "bits of another type": ({"bits": np.zeros(1, np.int8)}, r"need uint8\[1\]"),
    "bits of two axes": ({"bits": np.zeros((1, 1), np.uint8)}, r"need uint8\[1\]"),
    "no scale": ({"scale": np.zeros(0, np.float32)}, "needs one axis and an entry"),
    "scale of two axes": ({"scale": np.zeros((1, 1), np.float32)}, "needs one axis"),
    "integer scale": ({"scale": np.ones(1, np.int32)}, "scale is int32"),
    "double scale": ({"scale": np.ones(1, np.float64)}, "scale is float64"),
    "no scale length": ({"scale_length": 0}, "scale length 0"),
    "huge scale length": ({"scale_length": MAX_ELEMENTS + 1}, "scale length"),
    "negative offset": ({"offset": -1}, "offset -1 must be 0 to 5"),
    "offset past the tile": ({"offset": 6}, "offset 6 must be 0 to 5"),
    "negative scale offset": ({"scale_offset": -1}, "scale offset -1"),
    "scale offset past the cycle": ({"scale_offset": 12}, "scale offset 12 must be 0 to 11"),
}


@pytest.mark.parametrize("change, message", _PROBLEMS.values(), ids=_PROBLEMS)
def test_fields_out_of_range_are_refused(change, message):
    with pytest.raises(TileError, match=message):
        _weight(**change)


def test_bfloat16_scales_are_kept():
    weight = _weight(scale=np.array([0.3], BFLOAT16))
    assert weight.expand().dtype == BFLOAT16


def _weight(**changes):
    fields = {
        "bits": np.array([0b010110], np.uint8),
        "shape": (2, 6),
        "tile_length": 6,
        "scale": np.float32([0.5]),
        "scale_length": 12,
    }
    return TiledBinaryWeight(**{**fields, **changes})
