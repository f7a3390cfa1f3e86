"""The tiled weight against a direct numpy transcription of the paper's equations."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tbn_compile.training import ScaleMode, TilingError, tile_weight

SHAPES_AND_TILES = [
    ((8, 6), 4),
    ((3, 10), 5),  # a tile that is no multiple of a row
    ((4, 3, 3), 1),
    ((4, 2, 3, 3), 8),
    ((2, 2, 2, 3, 3), 12),
]


def expected_weight(
    scores: NDArray[np.float32], source: NDArray[np.float32], p: int, scale: ScaleMode
) -> NDArray[np.float64]:
    flat, magnitudes = scores.reshape(-1).astype(np.float64), np.abs(source).reshape(-1)
    q = flat.size // p
    weight = np.empty(flat.size)
    for position in range(flat.size):
        aggregate = sum(flat[i * q + position % q] for i in range(p))
        tile = position // q
        span = magnitudes[tile * q : (tile + 1) * q] if scale == "per_tile" else magnitudes
        alpha = span.astype(np.float64).sum() / span.size
        weight[position] = alpha if aggregate > 0 else -alpha
    return weight.reshape(scores.shape)


def draw(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("shape", "p"), SHAPES_AND_TILES)
@pytest.mark.parametrize("scale", ["per_layer", "per_tile"])
@pytest.mark.parametrize("separate", [True, False])
def test_forward_equals_the_equations(
    shape: tuple[int, ...], p: int, scale: ScaleMode, separate: bool
) -> None:
    scores = draw(shape, 1)
    source = draw(shape, 2) if separate else scores
    weight = tile_weight(scores, source, p, scale).numpy()
    expected = expected_weight(scores.numpy(), source.numpy(), p, scale)
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    np.testing.assert_array_equal(np.sign(weight), np.sign(expected))


def test_signs_repeat_exactly() -> None:
    weight = tile_weight(draw((12, 7), 3), draw((12, 7), 4), 4, "per_layer").reshape(4, -1)
    assert torch.equal(weight, weight[:1].expand(4, -1))


def test_sign_of_zero_is_minus_one() -> None:
    scores = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    weight = tile_weight(scores, torch.ones(2, 3), 2, "per_tile")
    assert weight.tolist() == [[-1, -1, 1], [-1, -1, 1]]


def test_scale_takes_magnitudes_not_values() -> None:
    source = torch.tensor([1.0, -3.0, -5.0, 7.0])
    weight = tile_weight(torch.ones(4), source, 2, "per_tile")
    assert weight.tolist() == [2, 2, 6, 6]
    assert tile_weight(torch.ones(4), source, 2, "per_layer").tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    scores = draw((4, 4), 5).to(dtype)
    assert tile_weight(scores, scores, 2, "per_tile").dtype == dtype


@pytest.mark.parametrize("scale", ["per_layer", "per_tile"])
def test_gradient_with_a_separate_source(scale: ScaleMode) -> None:
    """dL/dscores = g * alpha in place; dL/dsource = sign(A) * mean over its span of g * t."""
    p, shape = 3, (6, 4)
    scores = draw(shape, 6).requires_grad_()
    source = draw(shape, 7).requires_grad_()
    upstream = draw(shape, 8)
    weight = tile_weight(scores, source, p, scale)
    weight.backward(upstream)

    span = scores.numel() // (p if scale == "per_tile" else 1)
    alpha = np.abs(source.detach().numpy()).reshape(-1, span).mean(1, keepdims=True)
    g = upstream.numpy().reshape(-1, span)
    signs = np.sign(weight.detach().numpy()).reshape(-1, span)
    source_signs = np.sign(source.detach().numpy()).reshape(-1, span)
    expected_source = source_signs * (g * signs).sum(1, keepdims=True) / span
    assert scores.grad is not None
    assert source.grad is not None
    np.testing.assert_allclose(scores.grad.numpy().reshape(-1, span), g * alpha, rtol=1e-5)
    np.testing.assert_allclose(
        source.grad.numpy().reshape(-1, span), expected_source, rtol=1e-4, atol=1e-7
    )


def test_gradient_with_scores_as_source_is_the_sum_of_both_paths() -> None:
    """By hand: scores (2, -1 | 1, -3), tile (+1, -1), alpha = (1.5, 2), g = (1, 2 | 3, 4)."""
    scores = torch.tensor([2.0, -1.0, 1.0, -3.0], requires_grad=True)
    weight = tile_weight(scores, scores, 2, "per_tile")
    assert weight.tolist() == [1.5, -1.5, 2, -2]
    weight.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    # Through the sign: g * alpha. Through the scale: sign(A) * (g . t) / 2 = sign(A) * -0.5.
    expected = [1 * 1.5 - 0.5, 2 * 1.5 + 0.5, 3 * 2 - 0.5, 4 * 2 + 0.5]
    assert scores.grad is not None
    assert scores.grad.tolist() == expected


def test_gradient_is_not_clipped() -> None:
    scores = torch.tensor([100.0, -100.0], requires_grad=True)
    tile_weight(scores, torch.ones(2), 1, "per_layer").sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [1, 1]


def test_p_must_divide() -> None:
    weight = torch.zeros(3, 10)
    message = r"p = 4 does not divide the 30 elements of a weight of shape \[3, 10\]; use p = 3"
    with pytest.raises(TilingError, match=message):
        tile_weight(weight, weight, 4, "per_tile")
    assert issubclass(TilingError, ValueError)


@pytest.mark.parametrize("p", [0, -2])
def test_p_must_be_positive(p: int) -> None:
    with pytest.raises(
        TilingError, match=f"p is {p}; the number of tiles must be an int of at least 1"
    ):
        tile_weight(torch.zeros(4), torch.zeros(4), p, "per_tile")


def test_unknown_scale_mode() -> None:
    with pytest.raises(TilingError, match="'per_row'; use one of per_layer, per_tile"):
        tile_weight(torch.zeros(4), torch.zeros(4), 2, "per_row")  # type: ignore[arg-type]
