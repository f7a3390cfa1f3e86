"""Whole models tiled in place: which layers, with which p, and what is refused."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tbn_compile.training import TilingError, freeze, tile_model


class Network(nn.Module):
    """Every kind of layer that is tiled, and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.series = nn.Conv1d(16, 16, 3, padding=1)
        self.volume = nn.Conv3d(1, 4, 2)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.other = nn.MultiheadAttention(16, 2, kdim=8, vdim=12, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.table = nn.Embedding(5, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.series(self.stem(images).flatten(2)).transpose(1, 2)
        x = self.norm(self.encoder(x))
        x, _ = self.other(x, x[..., :8], x[..., :12])
        return (
            self.head(x.mean(1))
            + self.volume(images[:, :1, None, :2, :2].repeat(1, 1, 2, 1, 1)).mean()
        )


LAYERS = {
    "stem", "series", "volume", "encoder.self_attn.in_proj", "encoder.self_attn.out_proj",
    "encoder.linear1", "encoder.linear2", "other.q_proj", "other.k_proj", "other.v_proj",
    "other.out_proj", "head",
}  # fmt: skip


def tiles(model: nn.Module) -> dict[str, int]:
    """p of each tiled layer."""
    found = {}
    for path, module in model.named_modules():
        for tensor, chain in getattr(module, "parametrizations", {}).items():
            name = f"{path}.{tensor}".removesuffix("weight").rstrip("._").lstrip(".")
            found[name] = chain[0].p
    return found


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def test_every_layer_is_tiled_in_place_and_the_rest_left_alone() -> None:
    model = network()
    before = copy.deepcopy(model)
    assert tile_model(model, min_size=0) is model
    assert tiles(model) == dict.fromkeys(LAYERS, 4)
    for name, parameter in before.named_parameters():
        if name.endswith("weight") and not name.startswith(("norm", "table", "encoder.norm")):
            owner, _, tensor = name.rpartition(".")
            weight = getattr(model.get_submodule(owner), tensor).detach().numpy()
            rows, source = weight.reshape(4, -1), parameter.detach().numpy().reshape(4, -1)
            signs = np.where(source.sum(0) > 0, 1, -1)
            expected = signs * np.abs(source).mean(1, keepdims=True)
            np.testing.assert_allclose(rows, expected, rtol=1e-5)
        else:
            assert torch.equal(model.get_parameter(name), parameter)


def test_model_trains_and_freezes() -> None:
    model = tile_model(network(), min_size=0)
    images = torch.randn(2, 3, 4, 4)
    model(images).square().sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == ["table.weight"]
    model.eval()
    frozen = freeze(model)
    assert not any(hasattr(module, "parametrizations") for module in frozen.modules())
    assert {type(m) for m in frozen.modules()} == {type(m) for m in network().modules()}
    with torch.no_grad():
        # Without bias, PyTorch multiplies by a parameter and by a plain tensor in other orders.
        torch.testing.assert_close(frozen(images), model(images), rtol=1e-5, atol=1e-5)


def test_threshold() -> None:
    assert set(tiles(tile_model(network())).values()) == {1}
    assert set(tiles(tile_model(network(), min_size=512)).items()) >= {
        ("encoder.linear1", 4), ("stem", 1), ("encoder.self_attn.in_proj", 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["head"], {"head"}),
        (["encoder"], {name for name in LAYERS if name.startswith("encoder")}),
        (["*_proj"], {name for name in LAYERS if name.endswith("_proj")}),
        (["other.q_proj", "s*m"], {"other.q_proj", "stem"}),
    ],
)
def test_skip(skip: list[str], left: set[str]) -> None:
    assert tiles(tile_model(network(), min_size=0, skip=skip)).keys() == LAYERS - left


def test_p_by_pattern_takes_the_first_that_matches() -> None:
    model = tile_model(network(), {"head": 2, "encoder": 8, "*": 4}, min_size=0)
    assert tiles(model) == {
        name: 2 if name == "head" else 8 if name.startswith("encoder") else 4 for name in LAYERS
    }


def test_p_by_function() -> None:
    model = tile_model(network(), lambda name, weight: len(weight) // 4, min_size=0)
    assert tiles(model)["encoder.self_attn.in_proj"] == 12
    assert tiles(model)["stem"] == 4


def test_a_single_layer_is_a_model() -> None:
    layer = tile_model(nn.Linear(8, 4), min_size=0)
    assert tiles(layer) == {"": 4}
    assert type(freeze(layer)) is nn.Linear


def test_subclasses_keep_their_forward() -> None:
    class Doubling(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    layer = tile_model(Doubling(8, 4), min_size=0)
    batch = torch.randn(3, 8)
    expected = 2 * nn.functional.linear(batch, layer.weight, layer.bias)
    assert torch.equal(layer(batch), expected)
    assert type(freeze(layer)) is Doubling


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 8)
        self.head.weight = self.table.weight


def test_a_layer_in_two_places_is_tiled_once() -> None:
    shared = nn.Linear(8, 8)
    model: Any = tile_model(nn.Sequential(shared, nn.Sequential(shared)), min_size=0)
    assert tiles(model) == {"0": 4}
    assert model[0] is model[1][0]


LAZY = "weight has no shape yet; run the model on a batch first"
CONVERT = "weight is torch.int8; make it float, or skip the layer"


def integers() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network, {"p": 5}, "layer 'stem': p = 5 does not divide the 432 elements of a weight of "
         "shape [16, 3, 3, 3]; use p = 4 or another divisor"),
        (network, {"p": {"head": 5, "*": 4}}, "layer 'head': p = 5 does not divide the 64"),
        (network, {"p": lambda name, weight: 0}, "layer 'stem': p is 0"),
        (network, {"p": "4"}, "layer 'stem': p is '4'; the number of tiles must be an int"),
        (network, {"p": {"stem": 4, "*": True}}, ": p is True; the number of tiles must be an int"),
        (network, {"p": 10**18}, "layer 'stem': p = 1000000000000000000 does not divide the 432 "
         "elements of a weight of shape [16, 3, 3, 3]; use p = 432 or another divisor"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Conv1d(4, 0, 3)), {},
         "layer '1': a weight of shape [0, 4, 3] has no elements; skip the layer"),
        (lambda: nn.Sequential(prune.identity(nn.Linear(8, 8), "weight")), {},
         "layer '0': weight is no parameter, as if pruned; undo that, or skip the layer"),
        (network, {"skip": "head"}, "skip is 'head'; use a list of patterns"),
        (network, {"skip": ["haed"]}, "skip names 'haed', which is no Linear, Conv or attention "
         "layer of the model; the closest are: head"),
        (network, {"skip": ["norm"]}, "skip names 'norm', which is no Linear"),
        (network, {"p": {"heads.*": 2, "*": 4}}, "p names 'heads.*', which is no Linear"),
        (network, {"p": {"head": 2}}, "layer 'stem': no pattern of p matches; add one"),
        (network, {"scale": "per_row"}, "layer 'stem': scale is 'per_row'"),
        (network, {"latent": "half"}, "layer 'stem': latent is 'half'; use one of full, aggregate"),
        (integers, {}, f"layer '1': {CONVERT}"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), {}, f"layer '0': {LAZY}"),
        (lambda: tile_model(nn.Sequential(nn.Linear(8, 8))), {},
         "layer '0': weight is parametrized already; remove that, or skip the layer"),
        (Tied, {},
         "layer 'head': its weight is shared by table.weight and head.weight; untie them"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_bad_use_names_the_layer_and_changes_nothing(
    model: Any, options: Any, message: str
) -> None:
    torch.manual_seed(0)
    built = model()
    kinds = [type(module) for module in built.modules()]
    with pytest.raises(TilingError) as raised:
        tile_model(built, min_size=0, **options)
    assert message in str(raised.value)
    assert [type(module) for module in built.modules()] == kinds
