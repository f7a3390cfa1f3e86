"""Other trainers' checkpoints, with tensors as the authors' code and its packing make them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tbn_compile.tile import pack_bits
from tbn_compile.training import TilingError, load_checkpoint, tile_model, tile_weight

State = dict[str, Tensor]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16), nn.Linear(16, 5))


def scores_state() -> State:
    """The first layer with scores and weight, the last one plain."""
    torch.manual_seed(1)
    state = network().state_dict()
    return {**state, "0.weight": torch.randn(16, 24), "0.scores": torch.randn(16, 24)}


def packed_state(as_bits: bool = True, scales: int = 4) -> State:
    """The first layer as a tile of 96 elements with `scales` scales."""
    torch.manual_seed(1)
    state = network().state_dict()
    del state["0.weight"]
    signs = torch.randn(96).sign()
    bits = torch.from_numpy(pack_bits(signs.numpy() > 0))
    return {**state, "0.tile": bits if as_bits else signs, "0.alphas": torch.rand(scales) + 0.1}


def expand(state: State) -> np.ndarray:
    """The first layer's weight by the definition."""
    tile = state["0.tile"]
    if tile.dtype == torch.uint8:
        signs = np.array([1 if tile[k // 8] >> (k % 8) & 1 else -1 for k in range(96)])
    else:
        signs = tile.numpy()
    return (np.resize(state["0.alphas"].numpy(), (4, 1)) * signs).reshape(16, 24)


def test_scores_and_weight() -> None:
    state, model = scores_state(), network()
    load_checkpoint(model, state, p=4, min_size=200)
    expected = tile_weight(state["0.scores"], state["0.weight"], 4, "per_tile")
    assert torch.equal(model[0].weight, expected)
    assert type(model[2]) is nn.Linear
    assert torch.equal(model[2].weight, state["2.weight"])
    assert set(state) == set(scores_state())  # the caller's dict is left alone


def test_small_layers_have_one_tile() -> None:
    state, model = scores_state(), network()
    load_checkpoint(model, state, p=4)
    expected = tile_weight(state["0.scores"], state["0.weight"], 1, "per_tile")
    assert torch.equal(model[0].weight, expected)


@pytest.mark.parametrize("scale", ["per_layer", "per_tile"])
def test_scores_load_into_the_tiling_that_the_model_has(scale: Any) -> None:
    state = scores_state()
    model = tile_model(network(), 8, min_size=0, scale=scale, skip=["2"])
    load_checkpoint(model, state)
    expected = tile_weight(state["0.scores"], state["0.weight"], 8, scale)
    assert torch.equal(model[0].weight, expected)


@pytest.mark.parametrize("name", ["0.scores", "0.weight"])
def test_scores_that_make_the_scales_too(name: str) -> None:
    state = scores_state()
    scores = state.pop("0.scores")
    del state["0.weight"]
    model = tile_model(network(), 4, min_size=0, scale_from="weight", skip=["2"])
    load_checkpoint(model, {**state, name: scores})
    assert torch.equal(model[0].weight, tile_weight(scores, scores, 4, "per_tile"))


@pytest.mark.parametrize("as_bits", [True, False])
def test_packed_tile_infers_p(as_bits: bool) -> None:
    state, model = packed_state(as_bits), network()
    load_checkpoint(model, state)
    np.testing.assert_array_equal(model[0].weight.detach().numpy(), expand(state))
    assert [latent.numel() for latent in model[0].parametrizations.weight.parameters()] == [96, 4]


def test_packed_tile_with_one_scale() -> None:
    state, model = packed_state(scales=1), network()
    load_checkpoint(model, state)
    np.testing.assert_array_equal(model[0].weight.detach().numpy(), expand(state))


def test_packed_tile_that_fits_several_p_takes_the_given_one() -> None:
    state = {"tile": torch.tensor([37], dtype=torch.uint8), "alphas": torch.ones(1)}
    with pytest.raises(TilingError, match=r"layer '': the tile fits p = .* or .*; pass p"):
        load_checkpoint(nn.Linear(6, 4, bias=False), state)
    model = nn.Linear(6, 4, bias=False)
    load_checkpoint(model, state, p=4, min_size=0)
    signs = [1, -1, 1, -1, -1, 1]  # 37 = 0b100101, least significant bit first
    assert model.weight.tolist() == [signs] * 4


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrappers_prefixes_are_dropped(prefix: str) -> None:
    state, model = packed_state(), network()
    load_checkpoint(model, {prefix + name: tensor for name, tensor in state.items()})
    np.testing.assert_array_equal(model[0].weight.detach().numpy(), expand(state))


def test_attention() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2)
    state = model.state_dict()
    scores, weight = torch.randn(24, 8), state.pop("in_proj_weight")
    load_checkpoint(
        model, {**state, "in_proj.scores": scores, "in_proj.weight": weight}, p=4, min_size=0
    )
    assert torch.equal(model.in_proj_weight, tile_weight(scores, weight, 4, "per_tile"))


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


def plain() -> nn.Module:
    return network()


def tiled() -> nn.Module:
    return tile_model(network(), 4, min_size=0, skip=["2"])


def tied() -> nn.Module:
    model = network().append(nn.Linear(24, 16))
    model[3].weight = model[0].weight
    return model


BITS = "expected L / p bits as uint8, or L / p signs, and 1 or p alphas"


@pytest.mark.parametrize(
    ("model", "state", "options", "message"),
    [
        (plain, scores_state(), {}, "layer '0': scores do not tell p; pass p, or call tile_model"),
        (plain, scores_state(), {"p": {"7": 4}}, "p names '7', which is no Linear"),
        (plain, scores_state(), {"p": 5, "min_size": 0}, "layer '0': p = 5 does not divide"),
        (plain, scores_state() | {"0.scores": torch.ones(16, 25)}, {"p": 4},
         "layer '0': scores or weight has shape [16, 25]; expected [16, 24]"),
        (tiled, packed_state(), {}, "layer '0': the checkpoint needs latent='aggregate' and 4 "
         "scales; the model's layer has latent='full' and 4"),
        (tiled, without(scores_state(), "0.weight"), {}, "layer '0': the checkpoint needs "
         "scale_from='weight', latent='full'; the model's layer has scale_from='separate'"),
        (tiled, without(scores_state(), "0.weight", "0.scores"), {}, "the checkpoint lacks "
         "'0.parametrizations.weight.original0' of the model, which is tiled; expected scores and"),
        (tiled, scores_state(), {"p": 8, "min_size": 0},
         "layer '0': p = 8 is asked; the model's layer has p = 4; omit p"),
        (plain, without(packed_state(), "0.alphas"), {}, "layer '0': the checkpoint holds tile; "
         "expected scores and weight, or tile and alphas"),
        (plain, packed_state(scales=3), {}, "layer '0': a tile of 12 bytes with 3 alphas is none "
         f"of a weight of 384 elements; {BITS}"),
        (plain, packed_state(), {"p": 8, "min_size": 0}, "with p = 8; expected L / p bits"),
        (plain, packed_state(as_bits=False) | {"0.tile": torch.zeros(96)}, {},
         "layer '0': the tile holds other values than +1 and -1"),
        (plain, packed_state() | {"0.alphas": torch.tensor([1, 2, 0.0, 1])}, {},
         "layer '0': alphas must be positive numbers"),
        (plain, packed_state() | {"0.alphas": torch.ones(4, dtype=torch.complex64)}, {},
         "layer '0': alphas must be finite floating point numbers"),
        (plain, packed_state(as_bits=False) | {"0.tile": torch.ones(96, dtype=torch.bool)}, {},
         "layer '0': the tile holds other values than +1 and -1"),
        (plain, scores_state() | {"0.scores": torch.full((16, 24), torch.nan)},
         {"p": 4}, "layer '0': scores and weight must be finite floating point numbers"),
        (plain, scores_state() | {"0.scores": torch.ones(16, 24, dtype=torch.int8)},
         {"p": 4}, "layer '0': scores and weight must be finite floating point numbers"),
        (plain, scores_state() | {"1.bias": [1.0]}, {"p": 4},
         "the checkpoint's '1.bias' is no dense tensor; convert it"),
        (plain, scores_state() | {"0.scores": torch.ones(16, 24, device="meta")}, {"p": 4},
         "the checkpoint's '0.scores' is no dense tensor; convert it"),
        (plain, {0: torch.ones(1)}, {}, "the checkpoint's name 0 is no string"),
        (tied, scores_state(), {"p": 4, "min_size": 0},
         "layer '0': its weight is shared by 0.weight and 3.weight; untie them"),
        (plain, without(packed_state(), "1.bias"), {}, "the checkpoint lacks '1.bias'"),
        (plain, packed_state() | {"9.bias": torch.ones(1)}, {},
         "the checkpoint holds '9.bias', which the model lacks"),
        (plain, packed_state() | {"0.bias": torch.ones(3)}, {},
         "'0.bias' of the checkpoint has shape [3]; expected [16]"),
    ],
)  # fmt: skip
def test_bad_checkpoints_change_nothing(
    model: Callable[[], nn.Module], state: State, options: dict[str, Any], message: str
) -> None:
    built = model()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    with pytest.raises(TilingError) as raised:
        load_checkpoint(built, state, **options)
    assert message in str(raised.value)
    after = built.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
