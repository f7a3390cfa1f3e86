"""Tiled layers against plain PyTorch layers, and their freezing."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tbn_compile.training import (
    TiledAggregate,
    TiledConv1d,
    TiledConv2d,
    TiledConv3d,
    TiledLayer,
    TiledLinear,
    TilingError,
    freeze,
    layers,
    tile_weight,
)

CASES: list[tuple[type[TiledLayer], type[nn.Module], tuple[Any, ...], dict[str, Any], list[int]]]
CASES = [
    (TiledLinear, nn.Linear, (12, 8), {}, [5, 12]),
    (TiledLinear, nn.Linear, (12, 8), {"bias": False}, [2, 3, 12]),
    (TiledLinear, nn.Linear, (12, 8), {}, [12]),
    (TiledLinear, nn.Linear, (12, 6), {}, [5, 12]),  # tiles end inside rows
    (TiledConv1d, nn.Conv1d, (4, 8, 3), {"stride": 2, "padding": 1}, [2, 4, 9]),
    (TiledConv1d, nn.Conv1d, (4, 8, 3), {}, [4, 9]),
    (TiledConv2d, nn.Conv2d, (4, 8, 3), {"dilation": 2, "padding": "same"}, [2, 4, 7, 6]),
    (TiledConv2d, nn.Conv2d, (4, 8, (3, 2)), {"stride": (1, 2), "bias": False}, [2, 4, 7, 6]),
    (
        TiledConv2d,
        nn.Conv2d,
        (4, 8, (3, 2)),
        {"groups": 4, "bias": False, "padding": (2, 1), "padding_mode": "reflect"},
        [2, 4, 7, 6],
    ),
    (TiledConv3d, nn.Conv3d, (2, 4, 2), {"groups": 2}, [1, 2, 4, 3, 5]),
    (TiledConv3d, nn.Conv3d, (2, 4, 2), {"padding": 1, "dilation": 2}, [1, 2, 4, 3, 5]),
]
OPTIONS: list[dict[str, Any]] = [
    {"scale": "per_tile", "scale_from": "separate"},
    {"scale": "per_layer", "scale_from": "separate"},
    {"scale": "per_tile", "scale_from": "weight"},
    {"scale": "per_tile", "latent": "aggregate"},
]


def latents(layer: nn.Module) -> list[nn.Parameter]:
    """The scores and, if they are not the scores, the source of the scales."""
    return list(layer.parametrizations.weight.parameters(recurse=False))


def draw_latents(layer: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)


def all_gradients(layer: nn.Module, batch: torch.Tensor) -> list[torch.Tensor]:
    """The output, then the gradients of the input and of every parameter."""
    batch = batch.clone().requires_grad_()
    layer.zero_grad()
    output = layer(batch)
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    (output.square() * weights).sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    return [output.detach(), batch.grad, *gradients]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", OPTIONS)
def test_training_on_distinct_rows_equals_the_dense_weight(case: Any, options: Any) -> None:
    tiled, plain, args, geometry, shape = case
    layer = tiled(*args, **geometry, **options, p=4, min_size=0).double()
    draw_latents(layer)
    batch = torch.randn(shape, dtype=torch.float64)
    reference = copy.deepcopy(layer)
    reference.__class__ = type("Reference", (plain,), dict(vars(type(layer))))  # plain forward
    actual, expected = all_gradients(layer, batch), all_gradients(reference, batch)
    assert len(actual) == len(expected) >= 3
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def expected_gradients(
    layer: nn.Module, grad: NDArray[np.float64], scale: str, p: int
) -> list[NDArray[np.float64]]:
    """The paper's equations, for each latent tensor, from the gradient of the weight."""
    arrays = [latent.detach().numpy() for latent in latents(layer)]
    scores, source = arrays[0], arrays[-1]
    g = grad.reshape(p, -1)
    tile = np.where(scores.reshape(-1, g.shape[1]).sum(0) > 0, 1.0, -1.0)
    count = p if scale == "per_tile" else 1
    spans = source.reshape(count, -1)
    alpha = np.broadcast_to(np.abs(spans).mean(1, keepdims=True), (p, 1))
    to_scores = g * alpha
    if scores.size < g.size:
        to_scores = to_scores.sum(0)
    of_scales = (g * tile).reshape(count, -1).sum(1, keepdims=True)
    to_source = np.sign(spans) * of_scales * count / g.size
    shaped = [to_scores.reshape(scores.shape), to_source.reshape(source.shape)]
    return shaped if len(arrays) == 2 else [shaped[0] + shaped[1]]


@pytest.mark.parametrize("options", [*OPTIONS, {"scale": "per_layer", "latent": "aggregate"}])
@pytest.mark.parametrize("p", [1, 4, 3])  # the last one ends tiles inside rows
def test_gradients_equal_the_equations(options: dict[str, Any], p: int) -> None:
    layer = TiledLinear(12, 8, p=p, min_size=0, dtype=torch.float64, **options)
    draw_latents(layer)
    batch = torch.randn(5, 12, dtype=torch.float64)
    upstream = torch.randn(5, 8, dtype=torch.float64)
    layer(batch).backward(upstream)
    grad = upstream.numpy().T @ batch.numpy()
    expected = expected_gradients(layer, grad, options.get("scale", "per_tile"), p)
    for latent, wanted in zip(latents(layer), expected, strict=True):
        np.testing.assert_allclose(latent.grad.numpy(), wanted, rtol=1e-9, atol=1e-12)


def straight_through(layer: nn.Module) -> torch.Tensor:
    """The layer's weight, from operations that PyTorch differentiates any number of times."""
    arrays, tiling = latents(layer), layer.parametrizations.weight[0]
    scores = arrays[0].reshape(-1, tiling.tile_length)
    tile = torch.where(scores.sum(0) > 0, 1.0, -1.0)
    passed = scores + (tile - scores).detach()
    count = tiling.scale_count
    magnitudes = arrays[-1].reshape(count, -1).abs()
    if arrays[-1].numel() == count:  # an aggregate's scales stand for 1 / count of the weights
        share = count / tiling.shape.numel()
        magnitudes = share * magnitudes + (1 - share) * magnitudes.detach()
    return (magnitudes.mean(1, keepdim=True) * passed).reshape(tiling.shape)


def second_gradients(
    layer: nn.Module, apply: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor
) -> list[torch.Tensor]:
    """Gradients of the input and of every parameter, of a penalty on all gradients."""
    batch = batch.clone().requires_grad_()
    layer.zero_grad()
    variables = [batch, *layer.parameters()]
    first = torch.autograd.grad(apply(batch).tanh().sum(), variables, create_graph=True)
    sum(gradient.square().sum() for gradient in first).backward()
    return [variable.grad for variable in variables]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("convolution", [True, False])
def test_gradients_have_gradients(
    options: dict[str, Any], training: bool, convolution: bool
) -> None:
    size, shape = ((2, 8, 3), [3, 2, 9]) if convolution else ((12, 8), [5, 12])
    kind, operator = (
        (TiledConv1d, nn.functional.conv1d) if convolution else (TiledLinear, nn.functional.linear)
    )
    layer = kind(*size, p=4, min_size=0, dtype=torch.float64, **options).train(training)
    draw_latents(layer)
    batch = torch.randn(shape, dtype=torch.float64)
    expected = second_gradients(
        layer, lambda x: operator(x, straight_through(layer), layer.bias), batch
    )
    for mine, wanted in zip(second_gradients(layer, layer, batch), expected, strict=True):
        torch.testing.assert_close(mine, wanted)


def test_training_multiplies_by_the_distinct_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    linear = nn.functional.linear

    def record(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append(list(weight.shape))
        return linear(x, weight, *rest)

    monkeypatch.setattr(nn.functional, "linear", record)
    layer = TiledLinear(12, 8, min_size=0)
    layer(torch.zeros(2, 12))
    layer.eval()(torch.zeros(2, 12))
    assert shapes == [[2, 12], [8, 12]]


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_a_parametrization_on_top_is_heeded_in_training() -> None:
    layer = TiledLinear(12, 8, min_size=0, bias=False)
    batch = torch.randn(3, 12)
    before = layer(batch)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    torch.testing.assert_close(layer(batch), 2 * before)


def test_fixed_scores_cost_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = TiledLinear(12, 8, min_size=0)
    latents(layer)[0].requires_grad_(False)
    monkeypatch.setattr(layers, "_linear_weight_gradient", lambda *args, **named: 1 / 0)
    batch = torch.randn(3, 12, requires_grad=True)
    layer(batch).sum().backward()
    assert latents(layer)[0].grad is None
    assert latents(layer)[1].grad is not None
    torch.testing.assert_close(batch.grad, layer.weight.sum(0).expand(3, -1))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", OPTIONS)
def test_layer_and_its_dense_form_equal_the_plain_layer(case: Any, options: Any) -> None:
    tiled, plain, args, geometry, shape = case
    layer = tiled(*args, **geometry, **options, p=4, min_size=0).eval()
    draw_latents(layer)
    reference = plain(*args, **geometry)
    reference.weight.data = layer.weight.detach()
    reference.bias = layer.bias
    batch = torch.randn(shape)
    expected = reference(batch)
    assert torch.equal(layer(batch), expected)

    dense = freeze(layer)
    assert type(dense) is plain
    assert torch.equal(dense(batch), expected)
    assert torch.equal(layer(batch), expected)


@pytest.mark.parametrize("scale", ["per_layer", "per_tile"])
@pytest.mark.parametrize("scale_from", ["separate", "weight"])
def test_modes_reach_the_weight(scale: Any, scale_from: Any) -> None:
    layer = TiledLinear(12, 8, min_size=0, scale=scale, scale_from=scale_from)
    draw_latents(layer)
    scores, source = latents(layer)[0], latents(layer)[-1]
    assert (scores is source) == (scale_from == "weight")
    assert torch.equal(layer.weight, tile_weight(scores, source, 4, scale))
    assert layer.weight.abs().unique().numel() == (4 if scale == "per_tile" else 1)


def test_aggregate_keeps_a_tile_and_its_scales() -> None:
    torch.manual_seed(0)
    layer = TiledLinear(12, 8, min_size=0, latent="aggregate")
    assert [list(latent.shape) for latent in latents(layer)] == [[24], [4]]
    full = TiledLinear(12, 8, min_size=0)
    weight = torch.randn(8, 12)
    layer.weight = full.weight = weight
    torch.testing.assert_close(layer.weight, full.weight)


@pytest.mark.parametrize("scale", ["per_layer", "per_tile"])
@pytest.mark.parametrize("outputs", [8, 6])  # tiles of whole rows, and tiles that end inside
def test_aggregate_trains_as_full_scores_do_with_sgd(scale: Any, outputs: int) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"min_size": 0, "scale": scale, "dtype": torch.float64}
    full = TiledLinear(12, outputs, **options)
    small = TiledLinear(12, outputs, latent="aggregate", **options)
    nn.init.normal_(latents(full)[0])
    small.weight = latents(full)[0].detach()
    # A source whose magnitudes are equal in each tile, of either sign.
    spread = (
        latents(small)[1].detach().repeat_interleave(full.weight.numel() // len(latents(small)[1]))
    )
    latents(full)[1].data = (spread * torch.randn(spread.shape).sign()).reshape(full.weight.shape)
    pair = [full, small]
    rules = [torch.optim.SGD(x.parameters(), 0.01, 0.9, weight_decay=0.01) for x in pair]
    before = full.weight.detach().sign()
    for _ in range(8):
        batch = torch.randn(16, 12, dtype=torch.float64)
        for layer, rule in zip(pair, rules, strict=True):
            rule.zero_grad()
            (layer(batch) - batch[:, :outputs]).square().sum().backward()
            rule.step()
        torch.testing.assert_close(full.weight, small.weight, rtol=1e-9, atol=1e-9)
    assert not torch.equal(full.weight.sign(), before)


@pytest.mark.parametrize(("min_size", "tiles"), [(97, 1), (96, 4)])
def test_small_layers_get_one_tile_and_one_scale(min_size: int, tiles: int) -> None:
    layer = TiledLinear(12, 8, min_size=min_size)
    assert f"p={tiles}," in str(layer)
    assert layer.weight.abs().unique().numel() == tiles


def test_default_threshold_is_the_papers() -> None:
    assert "p=4," in str(TiledLinear(64, 1000, device="meta"))
    assert "p=1," in str(TiledLinear(9, 7111, device="meta"))


def test_latents_start_from_kaiming_normal() -> None:
    torch.manual_seed(0)
    layer = TiledLinear(512, 512)
    for latent in latents(layer):
        assert latent.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
        assert latent.mean().item() == pytest.approx(0, abs=1e-3)
    assert not layer.bias.any()


def test_reset_parameters_draws_anew() -> None:
    layer = TiledLinear(12, 8)
    nn.init.ones_(layer.bias)
    before = latents(layer)[0].detach().clone()
    layer.reset_parameters()
    assert not torch.equal(latents(layer)[0], before)
    assert not layer.bias.any()


def test_training_step_moves_every_parameter() -> None:
    torch.manual_seed(0)
    layer = TiledConv2d(2, 4, 3, p=2, min_size=0)
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    layer(torch.randn(1, 2, 5, 5)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert len(before) == 3
    for name, value in layer.named_parameters():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 7}, r"p = 7 does not divide the 96 elements of a weight of shape \[8, 12\]"),
        ({"scale": "per_row"}, "scale is 'per_row'; use one of per_layer, per_tile"),
        ({"scale_from": "scores"}, "scale_from is 'scores'; use one of separate, weight"),
        ({"latent": "none"}, "latent is 'none'; use one of full, aggregate"),
        (
            {"latent": "aggregate", "scale_from": "weight"},
            "keeps no scores that scales could come from; use scale_from='separate'",
        ),
    ],
)
def test_bad_options_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TilingError, match=message):
        TiledLinear(12, 8, min_size=0, **options)


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


def test_freeze_keeps_other_parametrizations() -> None:
    layer = TiledLinear(12, 8, min_size=0)
    nn.init.ones_(layer.bias)
    nn.utils.parametrizations.weight_norm(layer, "bias", dim=None)
    frozen = freeze(layer.eval())
    batch = torch.randn(3, 12)
    assert type(frozen.get_parameter("weight")) is nn.Parameter
    assert torch.equal(frozen(batch), layer(batch))
    assert isinstance(layer.parametrizations.weight[0], nn.Module)


def test_freeze_keeps_double_precision() -> None:
    layer = TiledLinear(12, 8, dtype=torch.float64)
    weight = freeze(layer).get_parameter("weight")
    assert weight.dtype == torch.float64
    assert torch.equal(weight, layer.weight)


def test_aggregate_is_a_tiling_of_its_own() -> None:
    layer = TiledLinear(12, 8, latent="aggregate")
    assert isinstance(layer.parametrizations.weight[0], TiledAggregate)
