"""Tiled models under what PyTorch users train with: DDP, compile, AMP, EMA, copies, checkpoints."""

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tbn_compile.training import tile_model

MODES: list[dict[str, Any]] = [
    {"scale_from": "separate"},
    {"scale_from": "weight", "scale": "per_layer"},
    {"latent": "aggregate"},
]


def network(**options: Any) -> nn.Module:
    """Layers with tiles of whole rows, with tiles that end inside rows, and attention."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Linear(16, 12),
        nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(96, 6),
    )
    return tile_model(model, 4, min_size=0, **options)


def batches(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def train_step(model: nn.Module, images: torch.Tensor, rule: torch.optim.Optimizer) -> None:
    rule.zero_grad()
    model(images).square().mean().backward()
    rule.step()


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def train_in_process(rank: int, folder: str) -> None:
    """Two steps in each mode by one of two processes, each on its half of the batch."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for mode, options in enumerate(MODES):
        model = DistributedDataParallel(network(**options))
        rule = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(2):
            train_step(model, batches().chunk(2)[rank], rule)
        torch.save(model.module.state_dict(), f"{folder}/{mode}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what two processes trained."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, __file__, str(folder)]
    processes = [subprocess.Popen([*command, rank]) for rank in "01"]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.parametrize("mode", range(len(MODES)))
def test_two_processes_equal_one(two_processes: Path, mode: int) -> None:
    options = MODES[mode]
    model = network(**options)
    before = parameters(model)
    rule = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        train_step(model, batches(), rule)
    first, second = (torch.load(two_processes / f"{mode}-{rank}.pt") for rank in range(2))
    for old, (name, expected) in zip(before, model.named_parameters(), strict=True):
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected.detach(), rtol=1e-4, atol=1e-6)
        assert not torch.equal(expected, old), name


@pytest.mark.parametrize("options", MODES)
def test_compiled_step_equals_eager_without_graph_breaks(options: dict[str, Any]) -> None:
    eager, model = network(**options), network(**options)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for step in (eager, compiled):
        step(batches()).square().mean().backward()
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", MODES)
@pytest.mark.filterwarnings(
    "ignore:There is a performance drop:UserWarning"
)  # attention, in PyTorch
def test_gradients_of_single_samples(options: dict[str, Any]) -> None:
    model, images = network(**options), batches(4)
    names = dict(model.named_parameters())

    def loss(latents: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(model, latents, (image[None],)).square().mean()

    together = vmap(grad(loss), (None, 0))(names, images)
    for index, image in enumerate(images):
        model.zero_grad()
        loss(names, image).backward()
        for name, parameter in names.items():
            torch.testing.assert_close(together[name][index], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", MODES)
def test_autocast_computes_in_bfloat16_and_keeps_float_gradients(options: dict[str, Any]) -> None:
    exact, model = network(**options), network(**options)
    exact(batches()).square().mean().backward()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batches())
        output.float().square().mean().backward()
    assert output.dtype == torch.bfloat16
    for mine, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == torch.float32
        difference = (mine.grad - theirs.grad).norm()
        assert difference <= 0.1 * theirs.grad.norm() + 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    output = model(batches().to(dtype))
    output.square().mean().backward()
    assert output.dtype == dtype
    assert all(parameter.grad.dtype == dtype for parameter in model.parameters())


def test_moving_average_averages_the_latent_tensors() -> None:
    model = network()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(model)
    before = parameters(model)
    train_step(model, batches(), torch.optim.SGD(model.parameters(), 1.0))
    average.update_parameters(model)
    for mean, old, new in zip(average.parameters(), before, model.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.9 * old + 0.1 * new)
    for module in average.modules():
        for tensor in getattr(module, "parametrizations", ()):
            rows = getattr(module, tensor).reshape(4, -1)
            assert torch.equal(rows.sign(), rows[:1].sign().expand_as(rows))


def reload(model: nn.Module) -> nn.Module:
    """Through a file's bytes into a new model."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = network()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(file))
    return other


@pytest.mark.parametrize("duplicate", [copy.deepcopy, reload])
def test_copies_are_equal_and_independent(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    train_step(model, batches(), torch.optim.SGD(model.parameters(), 0.1))
    other = duplicate(model)
    expected = model(batches())
    assert torch.equal(other(batches()), expected)
    train_step(other, batches(), torch.optim.SGD(other.parameters(), 0.1))
    assert torch.equal(model(batches()), expected)
    assert not torch.equal(other(batches()), expected)


def test_training_step_is_reproducible() -> None:
    runs = []
    for _ in range(2):
        model = network()
        train_step(model, batches(), torch.optim.Adam(model.parameters(), 0.01))
        runs.append(parameters(model))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


if __name__ == "__main__":
    train_in_process(int(sys.argv[2]), sys.argv[1])
