"""Detection: every form is found exactly, nothing else is, and nothing makes it slow."""

import numpy as np
import pytest
from helpers.weights import BFLOAT16, DTYPES, bits_of, random_signs, seeds, tiled_array
from hypothesis import assume, given
from hypothesis import strategies as st

from tbn_compile import detection
from tbn_compile.detection import NotTiled, detect_tile, find_window, smallest_period
from tbn_compile.tile import TiledBinaryWeight, pack_bits

BOTH = ("NK", "KN")
CONFIRMING = 64


@st.composite
def trained_weights(draw):
    """A weight as a trainer leaves it: one scale per layer, per tile, or per row with flips."""
    outputs, inputs = draw(st.integers(1, 40)), draw(st.integers(1, 80))
    layout = draw(st.sampled_from(BOTH))
    size = outputs * inputs
    along = inputs if layout == "NK" else outputs
    length = draw(
        st.one_of(
            st.integers(1, size),
            st.sampled_from([n for n in range(1, size + 1) if size % n == 0]),
            st.integers(1, size // along).map(lambda rows: rows * along),
            st.integers(2, max(2, along)),
            st.integers(size, size + 100),
        )
    )
    offset = draw(st.one_of(st.just(0), st.integers(0, length - 1)))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(seeds))
    scaling = draw(st.sampled_from(["layer", "tile", "row", "pruned rows"]))
    if scaling == "layer":
        scale, run, scale_offset = rng.uniform(0.1, 2, 1), size, 0
    elif scaling == "tile":
        scale, run, scale_offset = (
            rng.uniform(0.1, 2, -(-(size + offset) // length)),
            length,
            offset,
        )
    else:
        scale = rng.uniform(0.1, 2, outputs) * rng.choice([-1, 1], outputs)
        run, scale_offset = inputs if layout == "NK" else 1, 0
        if scaling == "pruned rows":
            scale[rng.random(outputs) < 0.3] = 0
    shape = (outputs, inputs) if layout == "NK" else (inputs, outputs)
    return TiledBinaryWeight(
        bits=pack_bits(random_signs(draw(seeds), length)),
        shape=shape,
        tile_length=length,
        scale=scale.astype(dtype),
        scale_length=run,
        offset=offset,
        scale_offset=scale_offset,
        layout=layout,
    )


def has_evidence(weight):
    """Whether the tile shows in the weight, rather than by chance.

    It divides the weight, or enough signs repeat. With flipped rows one row's worth of signs
    relates nothing.
    """
    if weight.size % weight.tile_length == 0 and weight.offset == 0:
        return True
    unrelated = weight.shape[1] if weight.scaling == "row" else 0
    return weight.size - unrelated - weight.tile_length >= CONFIRMING


@given(trained_weights())
def test_a_tile_is_found_exactly_and_stores_no_more_than_the_true_one(weight):
    dense = weight.matrix()
    found = detect_tile(dense, BOTH)
    if isinstance(found, NotTiled):
        positive = dense > 0
        assert (
            positive.all()
            or not positive.any()
            or weight.stored_bytes * 4 > dense.nbytes
            or not has_evidence(weight)
        ), found.reason
        return
    assert found.shape == (dense.shape if found.layout == "NK" else dense.shape[::-1])
    assert found.scale.dtype == dense.dtype
    np.testing.assert_array_equal(found.matrix(), dense)
    if has_evidence(weight):
        assert found.stored_bytes <= weight.stored_bytes
        if found.scale.size == weight.scale.size:
            assert found.tile_length <= weight.tile_length


@given(trained_weights(), seeds, st.booleans())
def test_one_changed_weight_is_never_lost(weight, seed, is_sign):
    dense = np.ascontiguousarray(weight.matrix())
    index = seed % dense.size
    assume(dense.reshape(-1)[index] != 0)
    patterns = bits_of(dense).reshape(-1).copy()
    patterns[index] ^= 1 << (8 * dense.itemsize - 1) if is_sign else 1
    changed = patterns.view(dense.dtype).reshape(dense.shape)
    found = detect_tile(changed, BOTH)
    if not isinstance(found, NotTiled):
        np.testing.assert_array_equal(found.matrix(), changed)
        np.testing.assert_array_equal(
            np.argwhere(found.matrix() != dense)[:, 0], index // dense.shape[1]
        )


@given(trained_weights(), st.tuples(st.integers(1, 4), st.integers(1, 3)))
def test_kernels_are_found_in_their_own_shape(weight, kernel):
    assume(weight.layout == "NK")
    shape = (weight.outputs, weight.inputs, 1, 1)
    found = detect_tile(weight.matrix().reshape(shape))
    if not isinstance(found, NotTiled):
        assert found.shape == shape
        np.testing.assert_array_equal(found.expand(), weight.matrix().reshape(shape))


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.integers(1, 5))
def test_the_shortest_period_is_found_as_by_trying_all(signs, repeats):
    signs = np.array(signs * repeats)
    size = signs.size
    expected = next(
        period
        for period in range(1, size + 1)
        if (size % period == 0 or 2 * period <= size or size - period >= CONFIRMING)
        and (signs[period:] == signs[:-period]).all()
    )
    assert smallest_period(signs) == expected


_WINDOWED = tiled_array((24, 48), 700, offset=123, seed=5)


def test_a_window_is_found_on_a_longer_tile():
    weight = detect_tile(_WINDOWED)
    tile = random_signs(5, 700)
    assert find_window(weight, tile) == 123
    assert find_window(weight, ~tile) is None
    assert find_window(weight, np.roll(tile, 200)) == 323


def test_a_window_with_one_other_sign_is_none():
    weight = detect_tile(_WINDOWED)
    tile = random_signs(5, 700)
    tile[500] ^= True
    assert find_window(weight, tile) is None


_SIGNED = tiled_array((16, 24), 96)


def _with(value, shape=(16, 24)):
    weight = _SIGNED.copy()
    weight[3, 4] = value
    return weight


_REFUSED = {
    "single weight": (np.ones((1, 1), np.float32), "a single weight"),
    "no weight": (np.ones((4, 0), np.float32), "an empty weight"),
    "dense": (
        np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32),
        "magnitudes differ: 384 values in the first 384",
    ),
    "large dense": (
        np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32),
        "values in the first 65536",
    ),
    "zeros": (np.zeros((16, 24), np.float32), "all weights are zero"),
    "equal": (np.full((16, 24), 0.5, np.float32), "same sign"),
    "equal and negative": (np.full((16, 24), -0.5, np.float16), "same sign"),
    "averages": (np.repeat(np.float32([1, 2, 3, 4]), 24).reshape(4, 24), "same sign"),
    "a NaN": (_with(np.nan), "not finite"),
    "an infinity": (_with(np.inf), "not finite"),
    "all infinite": (_SIGNED * np.float32(np.inf), "not finite"),
    "one zero": (_with(0), "1 of 384 weights are zero"),
    "one other magnitude": (_with(0.25), "would need|no common magnitude"),
    "ternary": (
        np.random.default_rng(0).choice([-1, 0, 1], (16, 24)).astype(np.float32),
        "weights are zero|magnitudes differ",
    ),
    "three weights": (np.float32([[1, -1, 1]]), "would need 5 of the weight's 12 bytes"),
    "two levels": (
        np.random.default_rng(0).choice([-2, -1, 1, 2], (16, 24)).astype(np.float32),
        "magnitudes differ|no common|would need",
    ),
}


@pytest.mark.parametrize(("weight", "reason"), _REFUSED.values(), ids=_REFUSED)
def test_other_weights_are_refused_with_the_reason(weight, reason):
    found = detect_tile(weight, BOTH)
    assert isinstance(found, NotTiled)
    import re

    assert re.search(reason, found.reason), found.reason


@given(seeds, st.sampled_from(DTYPES), st.integers(2, 60), st.integers(2, 60))
def test_random_dense_weights_are_no_tile(seed, dtype, outputs, inputs):
    assume(outputs * inputs > 16)
    weight = np.random.default_rng(seed).standard_normal((outputs, inputs)).astype(dtype)
    assert isinstance(detect_tile(weight, BOTH), NotTiled)


def test_quantised_dense_weights_are_no_tile():
    levels = np.random.default_rng(1).integers(-7, 8, (64, 64)).astype(np.float32) * 0.1
    assert isinstance(detect_tile(levels, BOTH), NotTiled)


def test_the_smaller_form_wins_where_two_describe_a_weight():
    weight = tiled_array((64, 64), 64 * 64 // 16)
    assert detect_tile(weight, BOTH).tile_length == 256
    flipped = weight * np.where(random_signs(9, 64), 1, -1)[:, None].astype(np.float32)
    found = detect_tile(flipped, BOTH)
    assert (found.tile_length, found.scaling) == (256, "row")


def test_pruned_rows_keep_their_place_in_the_tile():
    weight = tiled_array((64, 64), 64 * 64 // 4) * np.where(random_signs(9, 64), 1, -1)[:, None]
    weight[::7] = 0
    found = detect_tile(weight.astype(BFLOAT16), BOTH)
    assert found.tile_length == 1024
    np.testing.assert_array_equal(found.matrix(), weight.astype(BFLOAT16))


def test_scales_of_tiles_that_cover_whole_rows_of_inputs():
    """[K, N] with few inputs per tile: seen along [N, K] every magnitude differs."""
    weight = tiled_array((96, 32), 32, np.repeat(np.linspace(1, 2, 96), 32)).T
    found = detect_tile(weight, BOTH)
    assert (found.layout, found.tile_length, found.scaling) == ("KN", 32, "tile")


def _nearly_periodic():
    rng = np.random.default_rng(0)
    size, shape = 2**22, (1024, 4096)
    flips = np.where(rng.random(1024) < 0.5, 1, -1).astype(np.float32)[:, None]
    tile = rng.random(64) < 0.5
    fibonacci = [np.array([True]), np.array([True, False])]
    while fibonacci[-1].size < size:
        fibonacci.append(np.concatenate([fibonacci[-1], fibonacci[-2]]))
    alternating = np.arange(size) % 2 == 0

    def signs(flat):
        return np.where(flat[:size], 0.5, -0.5).astype(np.float32).reshape(shape)

    def broken(weight, position=-1):
        weight.reshape(-1)[position] *= -1
        return weight

    return {
        "all but the last": broken(signs(np.ones(size, bool))),
        "all but the middle": broken(signs(np.ones(size, bool)), size // 2 + 99),
        "all but the first": broken(signs(np.ones(size, bool)), 0),
        "Fibonacci word": signs(fibonacci[-1]),
        "alternating but the last": broken(signs(alternating)),
        "alternating rows, flipped": signs(alternating) * flips,
        "alternating rows, flipped, but the last": broken(signs(alternating) * flips),
        "64 again and again but the last": broken(signs(np.resize(tile, size))),
        "64 again and again, flipped, but the last": broken(signs(np.resize(tile, size)) * flips),
        "many outputs of two inputs": signs(rng.random(size) < 0.5).reshape(-1, 2),
        "many outputs of eight inputs": broken(signs(alternating)).reshape(-1, 8),
        "two outputs": signs(rng.random(size) < 0.5).reshape(2, -1),
        "a pruned row": signs(alternating) * np.eye(1, 1024, 5, dtype=np.float32).T[::-1]
        - signs(alternating),
    }


_NEARLY_PERIODIC = _nearly_periodic()


@pytest.mark.parametrize("name", _NEARLY_PERIODIC)
def test_the_search_is_bounded_however_periodic_a_weight_looks(name, monkeypatch):
    """Counts the symbols that are compared: a linear number, whatever the weight."""
    weight = _NEARLY_PERIODIC[name]
    compared = 0
    count = detection._agreement

    def counting(symbols, period):
        nonlocal compared
        agreeing = count(symbols, period)
        compared += agreeing
        return agreeing

    monkeypatch.setattr(detection, "_agreement", counting)
    found = detect_tile(weight, BOTH)
    assert compared <= 2 * (detection._WORK + 1) * weight.size
    if not isinstance(found, NotTiled):
        np.testing.assert_array_equal(found.matrix(), weight)
