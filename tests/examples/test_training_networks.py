"""The image networks of the recipes: their sizes, what they compute, and that they compile."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS
from networks.swin import HEAD_DIM, WindowAttention
from recipe import Recipe, load_recipe, recipe_names
from torch import Tensor, nn

from tbn_compile import compile_model, validate_model
from tbn_compile.targets.compiled.validation import validate_library
from tbn_compile.training import export, freeze, tile_model
from tbn_compile.training.parametrization import tiled_tensors

IMAGE_NETWORKS = [
    "mlp", "resnet18", "resnet50", "vgg_small", "vit", "swin", "mixer", "convmixer",
]  # fmt: skip
SMALL_IMAGES = {"resnet18": 16, "resnet50": 16, "convmixer": 16}
"""Pixels of a side, for networks that take images of any size."""
CIFAR = {
    "resnet18": {},
    "resnet50": {},
    "vgg_small": {"image_size": 32},
    "vit": {"image_size": 32},
    "mixer": {"image_size": 32, "token_hidden": 256},
}
"""The options that, with three channels, give the networks of the paper's CIFAR-10 table."""
PAPER_BITS = {
    "resnet18": {4: 0.258, 8: 0.134, 16: 0.072},
    "resnet50": {4: 0.259, 8: 0.135, 16: 0.073},
    "vgg_small": {4: 0.288, 8: 0.169, 16: 0.109},
    "vit": {4: 0.252, 8: 0.128},
    "mixer": {4: 0.344, 8: 0.235, 16: 0.180},
}
FIGURES = [(name, p, bits) for name, row in PAPER_BITS.items() for p, bits in row.items()]
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 32},
    "vit": {"dim": 32, "depth": 1, "heads": 2, "hidden": 64},
    "swin": {"dims": (32, 64), "depths": (2, 1)},
    "mixer": {"dim": 32, "depth": 1, "token_hidden": 16, "channel_hidden": 64},
    "convmixer": {"dim": 32, "depth": 1},
}
TARGETS = {"swin": ["ort", "llvm"]}
"""ort alone for the others: trained ones are compiled for llvm in test_training_models."""
VALIDATORS = {"ort": validate_model, "llvm": validate_library}


def bits_per_weight(name: str, p: int, **options: Any) -> float:
    """Bits of all tiles over weights, without allocating the weights."""
    with torch.device("meta"):
        network = tile_model(NETWORKS[name](**options), p=p, min_size=load_recipe(name).min_size)
    tilings = [each.tiling for layer in network.modules() for each in tiled_tensors(layer)]
    return sum(t.tile_length for t in tilings) / sum(t.shape.numel() for t in tilings)


@pytest.mark.parametrize(("name", "p", "bits"), FIGURES)
def test_bits_per_weight_on_cifar_are_the_papers(name: str, p: int, bits: float) -> None:
    # The paper's ResNet-18 has fewer weights below the threshold than the published network.
    tolerance = 0.007 if name == "resnet18" else 0.0006
    computed = bits_per_weight(name, p, channels=3, **CIFAR[name])
    assert computed == pytest.approx(bits, abs=tolerance)


@pytest.mark.parametrize(("name", "p", "bits"), FIGURES)
def test_bits_per_weight_of_the_recipes_are_near_the_papers(name: str, p: int, bits: float) -> None:
    arguments = load_recipe(name).network.arguments
    assert bits_per_weight(name, p, **arguments) == pytest.approx(bits, abs=0.0075)


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_173_962), ("resnet50", 23_520_842)]
)
def test_resnets_have_the_parameters_of_their_cifar_form(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = NETWORKS[name](channels=3)
    assert sum(each.numel() for each in network.parameters()) == parameters


@pytest.mark.parametrize("name", ["mlp", "swin", "convmixer"])
def test_recipes_tile_most_of_their_weights_sixteen_times(name: str) -> None:
    arguments = load_recipe(name).network.arguments
    assert 1 / 16 < bits_per_weight(name, 16, **arguments) < 0.18


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_every_parameter_learns_from_every_image(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](**load_recipe(name).network.arguments)
    size = SMALL_IMAGES.get(name, 28)
    images = torch.rand(2, 1, size, size, requires_grad=True)
    logits = network(images)
    assert logits.shape == (2, 10)
    F.cross_entropy(logits, torch.tensor([3, 8])).backward()
    assert images.grad is not None
    assert images.grad.flatten(1).norm(dim=1).min() > 0
    still = [
        key for key, each in network.named_parameters() if each.grad is None or not each.grad.any()
    ]
    assert not still


def reference_attention(layer: WindowAttention, x: Tensor) -> Tensor:
    """The layer on maps [batch, size, size, dim], as attention among all positions with a mask."""
    batch, size, _, dim = x.shape
    window, heads = layer.window, layer.heads
    axis = torch.arange(size)
    row, column = torch.cartesian_prod(axis, axis).unbind(1)
    # A window cut by the map's edge stays there: nothing meets what is on the other side.
    group = [(place + window - layer.shift) // window for place in (row, column)]
    together = [(each[:, None] == each) for each in group]
    down, right = (place[:, None] - place + window - 1 for place in (row, column))
    index = (down * (2 * window - 1) + right).clamp(0, len(layer.position_bias) - 1)
    bias = layer.position_bias[index].permute(2, 0, 1)
    bias = bias.masked_fill(~(together[0] & together[1]), float("-inf"))
    qkv = layer.qkv(x).reshape(batch, size * size, 3, heads, HEAD_DIM)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    weights = (query @ key.mT / HEAD_DIM**0.5 + bias).softmax(-1)
    return layer.output((weights @ value).transpose(1, 2).reshape(batch, size, size, dim))


@pytest.mark.parametrize(("size", "shift"), [(14, 0), (14, 3), (7, 0), (21, 3)])
def test_window_attention_is_attention_inside_shifted_windows(size: int, shift: int) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(2 * HEAD_DIM, size, window=7, shift=shift)
    nn.init.normal_(layer.position_bias)
    x = torch.randn(2, size, size, 2 * HEAD_DIM)
    torch.testing.assert_close(layer(x), reference_attention(layer, x))


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_compile(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = tile_model(NETWORKS[name](**SMALL[name]), p=4, min_size=1_000).eval()
    source = tmp_path / f"{name}.onnx"
    export(freeze(network), source, torch.rand(1, 1, 28, 28))
    for target in TARGETS.get(name, ["ort"]):
        artifact = tmp_path / f"{name}.{target}.bin"
        compile_model(source, target, artifact)
        report = VALIDATORS[target](source, artifact, input_dims={"batch": 3})
        assert report.passed, report.outputs


def sample_shape(recipe: Recipe) -> tuple[int, ...]:
    if recipe.task == "forecasting":
        return recipe.network.arguments["window"], recipe.network.arguments["channels"]
    return (3, 1024) if "pointnet" in recipe.name else (1, 28, 28)


@pytest.mark.slow
@pytest.mark.parametrize("target", VALIDATORS)
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_compiles(name: str, target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = load_recipe(name)
    network = NETWORKS[recipe.network.name](**recipe.network.arguments)
    tile_model(network, p=8, min_size=recipe.min_size).eval()
    source, artifact = tmp_path / "model.onnx", tmp_path / "artifact.bin"
    export(freeze(network), source, torch.rand(1, *sample_shape(recipe)))
    compile_model(source, target, artifact)
    assert VALIDATORS[target](source, artifact, input_dims={"batch": 2}).passed
