"""Windows of hourly time series: what a forecaster sees and what it shall say."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from .data import Data, Samples

WINDOW = 96
HORIZON = 1
TRAINING_PART = 0.8


def packaged_file(package: str, path: str) -> Path:
    """A data file of an installed package, which is not imported.

    Raises:
        FileNotFoundError: the package is not installed, or has no such file.
    """
    specification = find_spec(package)
    if specification is None or specification.origin is None:
        raise FileNotFoundError(
            f"{package} is not installed, whose {path} is read; install it with: "
            f"pip install {package}"
        )
    file = Path(specification.origin).parent / path
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing; get another release with: pip install --upgrade {package}"
        )
    return file


def forecasting(years: list[Tensor]) -> Data:
    """Windows and what follows them, of hourly series [hours, channels], float32.

    Inputs are [n, 96, channels], targets [n, 1, channels]. The last fifth of each series is for
    testing: no target lies there in training, while a window of a test may begin before. Channels
    have mean 0 and variance 1 over the training part of their series.
    """
    train, test = zip(*(_split(year) for year in years), strict=True)
    return Data(_join(train), _join(test), prepare=nn.Identity(), augment=nn.Identity())


def _split(series: Tensor) -> tuple[Samples, Samples]:
    boundary = int(TRAINING_PART * len(series))
    deviation, mean = torch.std_mean(series[:boundary], dim=0)
    series = (series - mean) / deviation
    return _windows(series[:boundary]), _windows(series[boundary - WINDOW :])


def _windows(series: Tensor) -> Samples:
    inputs = series[:-HORIZON].unfold(0, WINDOW, 1)
    targets = series[WINDOW:].unfold(0, HORIZON, 1)
    return Samples(inputs.transpose(1, 2), targets.transpose(1, 2))


def _join(parts: tuple[Samples, ...]) -> Samples:
    return Samples(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
