"""The data sets of the recipes: shapes, splits, randomness, and errors where data are missing."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import fashion_mnist, load_profiles, series, weather
from datasets.data import Data
from datasets.fashion_mnist import augment, prepare
from datasets.load_profiles import FILE
from datasets.solids import classification, clouds, segmentation
from datasets.solids.objects import OBJECTS
from datasets.solids.surfaces import Surface, arch, ball, box, frustum
from datasets.weather import COLUMNS, FILES
from networks.forecaster import Forecaster
from networks.pointnet import PointNetClassifier, PointNetSegmenter
from recipe import load_recipe
from torch import Tensor, nn

from tbn_compile import compile_model, validate_model
from tbn_compile.training import export, freeze, tile_model
from tbn_compile.training.parametrization import tiled_tensors

HOURS = 600
BOUNDARY = 480
DRAWN = 20_000
Clouds = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, none of which can be imported."""
    for name in ("simbench", "pvlib"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


# Time series


def hours(values: Tensor) -> Tensor:
    """The hours at which a standardised `torch.arange(HOURS)` has these values."""
    deviation, mean = torch.std_mean(torch.arange(BOUNDARY).float())
    return (values * deviation + mean).round().int()


@pytest.fixture
def counted() -> Data:
    """Windows of a series in which each value tells its hour."""
    hour = torch.arange(HOURS).float()
    return series.forecasting([torch.stack([hour, 5 - 2 * hour], 1)])


def test_windows_are_followed_by_their_targets(counted: Data) -> None:
    for samples in (counted.train, counted.test):
        assert samples.inputs.shape[1:] == (96, 2)
        assert samples.targets.shape[1:] == (series.HORIZON, 2)
        both = hours(torch.cat([samples.inputs, samples.targets], 1)[..., 0])
        assert (both.diff(dim=1) == 1).all()
        assert torch.allclose(samples.inputs[..., 0], -samples.inputs[..., 1], atol=1e-5)


def test_no_target_of_a_test_is_seen_in_training(counted: Data) -> None:
    seen = set(hours(torch.cat([counted.train.inputs, counted.train.targets], 1)[..., 0]).unique())
    assert max(seen) == BOUNDARY - 1
    tested = hours(counted.test.targets[..., 0]).unique().tolist()
    assert tested == list(range(BOUNDARY, HOURS))


def test_test_values_do_not_change_the_training_windows(counted: Data) -> None:
    hour = torch.arange(HOURS).float()
    hour[BOUNDARY:] = 1e6
    other = series.forecasting([torch.stack([hour, 5 - 2 * hour], 1)])
    assert torch.equal(other.train.inputs, counted.train.inputs)


def test_windows_lie_within_one_year() -> None:
    years = [torch.randn(HOURS, 1), 1e3 + torch.randn(HOURS, 1)]
    data = series.forecasting(years)
    assert len(data.train.inputs) == 2 * (BOUNDARY - 96 - series.HORIZON + 1)
    assert data.train.inputs.abs().max() < 10, "years are standardised each for itself"
    assert data.train.inputs.isfinite().all()


def test_loads_are_hourly_means_of_active_power(packages: Path) -> None:
    quarters = np.arange(4 * HOURS)
    rows = [f"01.01.2016 00:00;-1;{k};7;{k % 96}" for k in quarters]
    write(packages / "simbench" / FILE, ["time;A_qload;A_pload;B_qload;B_pload", *rows])
    data = load_profiles()
    assert data.train.inputs.shape == (BOUNDARY - 96 - series.HORIZON + 1, 96, 2)
    assert data.train.inputs.dtype == torch.float32
    assert hours(data.train.inputs[0, :, 0]).tolist() == list(range(96))
    assert torch.allclose(data.train.inputs[0, 0], data.train.inputs[24, 0], atol=10)
    assert torch.allclose(data.train.inputs[0, 0, 1], data.train.inputs[24, 0, 1])


def test_weather_reads_its_columns_of_both_stations(packages: Path) -> None:
    names = ["Date", "Pressure (mbar)", *reversed(COLUMNS)]
    for file in FILES:
        rows = [
            ",".join(["01/01/1988", "x", *(str(k * (2 + n) % 31) for n in range(len(COLUMNS)))])
            for k in range(HOURS)
        ]
        write(packages / "pvlib" / file, ["723170,A STATION,NC", ",".join(names), *rows])
    data = weather()
    assert data.train.inputs.shape == (2 * (BOUNDARY - 96), 96, len(COLUMNS))
    first = torch.arange(BOUNDARY) * (2 + len(COLUMNS) - 1) % 31
    deviation, mean = torch.std_mean(first.float())
    assert torch.allclose(data.train.inputs[0, :, 0], (first[:96] - mean) / deviation, atol=1e-5)


@pytest.mark.parametrize(
    ("load", "package"), [(load_profiles, "simbench"), (weather, "pvlib")], ids=["load", "weather"]
)
def test_missing_packages_are_named_with_the_mend(
    load: Callable[[], Data], package: str, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=f"is missing; .*pip install --upgrade {package}"):
        load()
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(FileNotFoundError, match=f"install it with: pip install {package}"):
        load()


# Images


def test_fashion_mnist_keeps_bytes_until_they_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = bytes(k % 256 for k in range(3 * 28 * 28))
    for prefix in ("train", "t10k"):
        header = bytes([0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 28, 0, 0, 0, 28])
        images = tmp_path / f"{prefix}-images-idx3-ubyte.gz"
        images.write_bytes(gzip.compress(header + pixels))
        labels = tmp_path / f"{prefix}-labels-idx1-ubyte.gz"
        labels.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 3, 9, 0, 4])))
    monkeypatch.setattr("dataset.FOLDER", tmp_path)
    inputs, targets = fashion_mnist().train
    assert inputs.shape == (3, 1, 28, 28)
    assert inputs.dtype == torch.uint8
    assert targets.tolist() == [9, 0, 4]
    prepared = prepare(inputs)
    assert prepared.dtype == torch.float32
    assert prepared[0, 0, 0, 0] == pytest.approx(-0.2860 / 0.3530)
    assert prepared.max() == pytest.approx((1 - 0.2860) / 0.3530)


def test_images_are_moved_by_up_to_two_pixels_and_mirrored() -> None:
    torch.manual_seed(0)
    images = torch.full((2_000, 1, 28, 28), 0.5)
    images[:, :, 10, 5] = 1.0
    images[:, :, 10, 6] = 2.0
    changed = augment(images)
    assert changed.shape == images.shape
    rows, columns = (changed == 1).nonzero()[:, 2:].T
    mirrored = (changed == 2).nonzero()[:, 3] < columns
    assert set((rows - 10).tolist()) == {-2, -1, 0, 1, 2}
    assert set((columns[~mirrored] - 5).tolist()) == {-2, -1, 0, 1, 2}
    assert set((columns[mirrored] - 22).tolist()) == {-2, -1, 0, 1, 2}
    assert 0.4 < mirrored.float().mean() < 0.6
    assert changed.min() == pytest.approx(-0.2860 / 0.3530)


# Solids


@pytest.fixture(scope="module")
def made() -> Clouds:
    return clouds.make_clouds(60, seed=3)


def test_clouds_fit_the_unit_ball(made: Clouds) -> None:
    points, classes, parts = made
    assert points.shape == (60, 3, 1_024)
    assert points.dtype == np.float32
    assert np.linalg.norm(points, axis=1).max(1) == pytest.approx(1)
    assert points.mean(2) == pytest.approx(0, abs=1e-5)
    assert classes.dtype == parts.dtype == np.int64
    assert np.bincount(classes).tolist() == [5] * len(OBJECTS)
    assert parts.shape == (60, 1_024)


def test_every_class_has_parts_of_its_own(
    made: Clouds,
) -> None:
    _, classes, parts = made
    own = [set(parts[classes == number].ravel()) for number in range(len(OBJECTS))]
    assert sorted(label for labels in own for label in labels) == list(range(30))
    assert all(len(labels) in (2, 3) for labels in own)


def test_a_seed_gives_the_same_clouds(made: Clouds) -> None:
    again, other = clouds.make_clouds(60, seed=3), clouds.make_clouds(60, seed=4)
    for array, same in zip(made, again, strict=True):
        assert np.array_equal(array, same)
    assert not np.isclose(made[0], other[0]).all(axis=(1, 2)).any()


def test_a_quarter_of_the_points_is_hidden_on_one_side() -> None:
    random = np.random.default_rng(0)
    points = random.standard_normal((5, clouds.DRAWN, 3)).astype(np.float32)
    number = np.tile(np.arange(clouds.DRAWN), (5, 1))
    seen, kept = clouds.hide(points, number, random)
    assert seen.shape == (5, 1_024, 3)
    for every, some, index in zip(points, seen, kept, strict=True):
        assert np.array_equal(every[index], some)
        assert len(set(index)) == 1_024
        assert np.linalg.norm(some.mean(0)) > 0.3, "a random choice has its middle at 0"


@pytest.mark.parametrize("part_labels", [False, True])
def test_solids_as_data(part_labels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "TRAINING_CLOUDS", 24)
    monkeypatch.setattr(clouds, "TEST_CLOUDS", 12)
    data = segmentation() if part_labels else classification()
    assert data.train.inputs.shape == (24, 3, 1_024)
    assert data.train.targets.shape == ((24, 1_024) if part_labels else (24,))
    assert len(data.test.inputs) == len(data.test.targets) == 12
    assert data.train.targets.dtype == torch.int64


def test_augmented_clouds_are_turned_about_the_vertical_axis() -> None:
    torch.manual_seed(0)
    points = torch.randn(50, 3, 64)
    turned = clouds.augment(points)
    assert turned.shape == points.shape
    assert (turned[:, 2] - points[:, 2]).std() < 0.02
    radius = points[:, :2].norm(dim=1), turned[:, :2].norm(dim=1)
    assert (radius[0] - radius[1]).std() < 0.02
    assert (turned[:, :2] - points[:, :2]).std() > 0.5


def length(value: float) -> np.ndarray:
    return np.full((1, 1), value, np.float32)


SURFACES: dict[str, tuple[Surface, float, float]] = {
    "cone": (frustum(0, length(2), length(1)), 4 * np.pi * 1.25**0.5, 2 / 3),
    "cylinder": (frustum(1, 1, length(4)), 8 * np.pi, 2),
    "disc": (frustum(0, length(2), 0), 4 * np.pi, 0),
    "zone": (ball(length(2), 0, 0.5), 4 * np.pi, 0.5),
    "box": (box(length(1), length(2), length(3)), 22, 1.5),
    "moved": (box(length(1), length(2), length(3)).moved(z=length(2)), 22, 3.5),
    "turned": (ball(length(1)).turned(1), 4 * np.pi, 0),
}


def draw(surface: Surface) -> np.ndarray:
    """Points [points, 3]."""
    uniform = np.random.default_rng(0).random((4, 1, DRAWN), np.float32)
    return surface.place(1 - uniform)[0]


@pytest.mark.parametrize(("surface", "area", "height"), SURFACES.values(), ids=SURFACES)
def test_surfaces_have_their_area_and_centre(surface: Surface, area: float, height: float) -> None:
    points = draw(surface)
    assert surface.area == pytest.approx(area)
    assert points.mean(0) == pytest.approx([0, 0, height], abs=0.04)


def test_discs_are_drawn_uniformly_by_area() -> None:
    radius = np.hypot(*draw(frustum(0, length(1), 0)).T[:2])
    assert np.mean(radius < 0.5**0.5) == pytest.approx(0.5, abs=0.02)


def test_boxes_have_points_on_every_side_by_area() -> None:
    points = draw(box(length(1), length(2), length(3))) / [1, 2, 3] + [0.5, 0.5, 0]
    for axis, side in enumerate([6, 3, 2]):
        for end in (0, 1):
            assert np.mean(points[:, axis] == end) == pytest.approx(side / 22, abs=0.01)
    assert points.min() >= 0
    assert points.max() <= 1


def test_arches_are_drawn_uniformly_by_area() -> None:
    points = draw(arch(length(1), length(0.5)))
    reach = np.hypot(points[:, 0], points[:, 2])
    assert (reach - 1) ** 2 + points[:, 1] ** 2 == pytest.approx(0.25, abs=1e-5)
    assert points[:, 0].min() > -1e-6
    outside = 0.5 + 0.5 / np.pi  # of a torus, where the tube is half as thick as the ring
    assert np.mean(reach > 1) == pytest.approx(outside, abs=0.02)


# Their networks


@pytest.mark.parametrize(
    ("network", "dataset"),
    [("pointnet_classification", "solids"), ("pointnet_segmentation", "solid_parts")],
)
def test_recipes_of_point_clouds_fit_the_solids(network: str, dataset: str) -> None:
    recipe = load_recipe(network)
    assert (recipe.dataset, recipe.network.name) == (dataset, network)
    expected = {"solids": ("classes", len(OBJECTS)), "solid_parts": ("parts", 30)}[dataset]
    assert recipe.network.arguments[expected[0]] == expected[1]


@pytest.mark.parametrize("network", [PointNetClassifier(12, 0.3), PointNetSegmenter(30)])
def test_pointnet_does_not_care_for_the_order_of_points(network: nn.Module) -> None:
    cloud = torch.from_numpy(clouds.make_clouds(12, seed=1)[0][:2])
    order = torch.randperm(1_024)
    logits, permuted = network.eval()(cloud), network(cloud[:, :, order])
    if logits.dim() == 3:
        assert logits.shape == (2, 30, 1_024)
        logits = logits[:, :, order]
    assert torch.allclose(logits, permuted, atol=1e-5)


@pytest.mark.parametrize("name", ["forecast_load", "forecast_weather"])
def test_forecasts_start_from_the_last_value(name: str) -> None:
    arguments = load_recipe(name).network.arguments
    assert (arguments["window"], arguments["horizon"]) == (series.WINDOW, series.HORIZON)
    network = Forecaster(**arguments).eval()
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    window = torch.randn(2, 96, arguments["channels"])
    forecast = network(window)
    assert torch.equal(forecast, window[:, -1:].expand_as(forecast))


def test_a_small_forecaster_compiles(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Forecaster(
        channels=4, window=96, horizon=2, dim=32, depth=1, heads=2, mlp_dim=64, dropout=0.1
    )
    tile_model(network, p=4, min_size=1_024)
    source, compiled = tmp_path / "model.onnx", tmp_path / "model.tbn.onnx"
    export(freeze(network.eval()), source, torch.zeros(1, 96, 4))
    report = compile_model(source, output=compiled)
    assert len(report.lowered) == 6
    assert validate_model(source, compiled).passed


@pytest.mark.parametrize(("p", "bits_per_weight"), [(4, 0.259), (8, 0.136), (16, 0.074)])
def test_pointnet_has_the_bits_per_weight_of_the_paper(p: int, bits_per_weight: float) -> None:
    network = tile_model(PointNetClassifier(classes=12, dropout=0.3), p)
    tilings = [tiled.tiling for layer in network.modules() for tiled in tiled_tensors(layer)]
    bits = sum(tiling.tile_length for tiling in tilings)
    weights = sum(tiling.shape.numel() for tiling in tilings)
    assert bits / weights == pytest.approx(bits_per_weight, abs=0.0006)


def test_segmentation_of_points_compiles(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = tile_model(PointNetSegmenter(parts=30), p=4).eval()
    source, compiled = tmp_path / "model.onnx", tmp_path / "model.tbn.onnx"
    export(freeze(network), source, torch.zeros(1, 3, 64))
    compile_model(source, output=compiled)
    assert validate_model(source, compiled).passed
