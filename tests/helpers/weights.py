"""Tiled weights for tests: a plain transcription of the formula, and hypothesis strategies."""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from tbn_compile.tile import TiledBinaryWeight, pack_bits

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)
UNSIGNED = {2: np.uint16, 4: np.uint32}


def bits_of(array):
    """The array's bit patterns, to compare bit for bit."""
    return np.ascontiguousarray(array).view(UNSIGNED[array.dtype.itemsize])


def expand_plainly(weight):
    """The formula of the module's page, element by element, in Python integers."""
    size = 1
    for extent in weight.shape:
        size *= extent
    values = []
    for i in range(size):
        bit_index = (i + weight.offset) % weight.tile_length
        bit = (int(weight.bits[bit_index // 8]) >> (bit_index % 8)) & 1
        scale = weight.scale[((i + weight.scale_offset) // weight.scale_length) % len(weight.scale)]
        values.append(scale if bit else -scale)
    return np.array(values, dtype=weight.scale.dtype).reshape(weight.shape)


def random_signs(seed, length):
    return np.random.default_rng(seed).integers(0, 2, length).astype(np.bool_)


def tiled_array(shape, length, scale=1.0, offset=0, seed=0, dtype=np.float32):
    """A dense weight whose flat values are a random tile of `length`, repeated, times `scale`."""
    size = int(np.prod(shape))
    signs = np.resize(np.where(random_signs(seed, length), 1.0, -1.0), offset + size)[offset:]
    return (signs * np.broadcast_to(scale, (size,))).astype(dtype).reshape(shape)


seeds = st.integers(0, 2**32 - 1)


@st.composite
def scales(draw, count, dtypes=DTYPES, signed=True):
    """float[count] of distinct-looking finite magnitudes, some negative if `signed`."""
    dtype = draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(seeds))
    values = rng.uniform(0.01, 4.0, count)
    if signed:
        values *= rng.choice([-1, 1], count)
    return values.astype(dtype)


@st.composite
def tiled_weights(draw, layouts=("NK", "KN"), most=12):
    """Any valid `TiledBinaryWeight` of a few hundred weights: every scaling, offset and layout."""
    layout = draw(st.sampled_from(layouts))
    outputs, inputs = draw(st.integers(1, most)), draw(st.integers(1, 2 * most))
    shape = (outputs, inputs) if layout == "NK" else (inputs, outputs)
    if layout == "NK" and draw(st.booleans()):
        shape = (outputs, inputs, draw(st.integers(1, 3)))
    size = int(np.prod(shape))
    across = size // outputs
    length = draw(
        st.one_of(
            st.integers(1, 2 * size),
            st.sampled_from([n for n in range(1, size + 1) if size % n == 0]),
            st.sampled_from([across, 2 * across, outputs, 2 * outputs, 3 * outputs]),
        )
    )
    run = draw(
        st.one_of(
            st.integers(1, 2 * size),
            st.sampled_from(
                [length, across, outputs, 1, 2 * across, 2 * outputs, max(1, across // 2)]
            ),
        )
    )
    count = draw(st.one_of(st.just(1), st.sampled_from([outputs, across]), st.integers(1, 9)))
    offset = draw(st.one_of(st.just(0), st.integers(0, length - 1)))
    aligned = st.sampled_from([0, offset % (run * count), across % (run * count)])
    return TiledBinaryWeight(
        bits=pack_bits(random_signs(draw(seeds), length)),
        shape=shape,
        tile_length=length,
        scale=draw(scales(count)),
        scale_length=run,
        offset=offset,
        scale_offset=draw(st.one_of(aligned, st.integers(0, run * count - 1))),
        layout=layout,
    )
