"""Tiled layers against plain PyTorch layers, and their freezing."""

from typing import Any

import pytest
import torch
from torch import nn

from tbn_compile.training import (
    TiledConv1d,
    TiledConv2d,
    TiledConv3d,
    TiledLayer,
    TiledLinear,
    TilingError,
    freeze,
    tile_weight,
)

CASES: list[tuple[type[TiledLayer], type[nn.Module], tuple[Any, ...], dict[str, Any], list[int]]]
CASES = [
    (TiledLinear, nn.Linear, (12, 8), {}, [5, 12]),
    (TiledLinear, nn.Linear, (12, 8), {"bias": False}, [2, 3, 12]),
    (TiledConv1d, nn.Conv1d, (4, 8, 3), {"stride": 2, "padding": 1}, [2, 4, 9]),
    (TiledConv2d, nn.Conv2d, (4, 8, 3), {"dilation": 2, "padding": "same"}, [2, 4, 7, 6]),
    (
        TiledConv2d,
        nn.Conv2d,
        (4, 8, (3, 2)),
        {"groups": 4, "bias": False, "padding": (2, 1), "padding_mode": "reflect"},
        [2, 4, 7, 6],
    ),
    (TiledConv3d, nn.Conv3d, (2, 4, 2), {"groups": 2}, [1, 2, 4, 3, 5]),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale_from", ["separate", "scores"])
def test_layer_and_its_dense_form_equal_the_plain_layer(case: Any, scale_from: str) -> None:
    tiled, plain, args, options, shape = case
    torch.manual_seed(0)
    layer = tiled(*args, **options, p=4, min_size=0, scale_from=scale_from)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    source = layer.scores if scale_from == "scores" else layer.weight
    reference = plain(*args, **options)
    reference.weight.data = tile_weight(layer.scores, source, 4, "per_tile")
    reference.bias = layer.bias
    batch = torch.randn(shape)
    expected = reference(batch)
    assert torch.equal(layer(batch), expected)

    dense = freeze(layer)
    assert type(dense) is plain
    assert torch.equal(dense(batch), expected)


@pytest.mark.parametrize("scale", ["per_layer", "per_tile"])
def test_scale_mode_reaches_the_weight(scale: Any) -> None:
    layer = TiledLinear(12, 8, min_size=0, scale=scale)
    expected = tile_weight(layer.scores, layer.weight, 4, scale)
    assert torch.equal(layer.tiled_weight(), expected)
    assert expected.abs().unique().numel() == (4 if scale == "per_tile" else 1)


def test_scores_as_source_leave_no_second_tensor() -> None:
    layer = TiledLinear(12, 8, scale_from="scores")
    assert [name for name, _ in layer.named_parameters()] == ["bias", "scores"]


@pytest.mark.parametrize(("min_size", "tiles"), [(97, 1), (96, 4)])
def test_small_layers_get_one_tile_and_one_scale(min_size: int, tiles: int) -> None:
    layer = TiledLinear(12, 8, min_size=min_size)
    assert layer.tiles == tiles
    assert layer.tiled_weight().abs().unique().numel() == tiles


def test_default_threshold_is_the_papers() -> None:
    assert TiledLinear(64, 1000, device="meta").tiles == 4
    assert TiledLinear(9, 7111, device="meta").tiles == 1


def test_latents_start_from_kaiming_normal_and_differ() -> None:
    torch.manual_seed(0)
    layer = TiledLinear(512, 512)
    for latent in (layer.scores, layer.weight):
        assert latent.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
        assert latent.mean().item() == pytest.approx(0, abs=1e-3)
    assert not torch.equal(layer.scores, layer.weight)
    assert layer.bias is not None
    assert not layer.bias.any()


def test_reset_parameters_draws_anew() -> None:
    layer = TiledLinear(12, 8)
    before = layer.scores.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.scores, before)


def test_training_step_moves_every_parameter() -> None:
    torch.manual_seed(0)
    layer = TiledConv2d(2, 4, 3, p=2, min_size=0)
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    layer(torch.randn(1, 2, 5, 5)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert set(before) == {"weight", "bias", "scores"}
    for name, value in layer.named_parameters():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 7}, r"p = 7 does not divide the 96 elements of a weight of shape \[8, 12\]"),
        ({"scale": "per_row"}, "scale is 'per_row'; use one of per_layer, per_tile"),
        ({"scale_from": "weight"}, "scale_from is 'weight'; use one of separate, scores"),
    ],
)
def test_bad_options_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TilingError, match=message):
        TiledLinear(12, 8, min_size=0, **options)


def test_state_dict_round_trip() -> None:
    first, second = TiledLinear(12, 8, min_size=0), TiledLinear(12, 8, min_size=0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.tiled_weight(), second.tiled_weight())


def test_freeze_leaves_the_model_alone_and_keeps_its_mode() -> None:
    model = nn.Sequential(TiledLinear(12, 8), nn.BatchNorm1d(8), TiledLinear(8, 4)).eval()
    frozen = freeze(model)
    assert isinstance(model[0], TiledLinear)
    assert [type(layer) for layer in frozen.children()] == [nn.Linear, nn.BatchNorm1d, nn.Linear]
    assert not any(layer.training for layer in frozen.modules())
    batch = torch.randn(3, 12)
    assert torch.equal(model(batch), frozen(batch))


def test_freeze_keeps_a_shared_layer_shared() -> None:
    shared = TiledLinear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    frozen: Any = freeze(model)
    assert type(frozen[0]) is nn.Linear
    assert frozen[0] is frozen[2][0]


def test_freeze_keeps_double_precision() -> None:
    layer = TiledLinear(12, 8, dtype=torch.float64)
    weight = freeze(layer).get_parameter("weight")
    assert torch.equal(weight, layer.tiled_weight())
