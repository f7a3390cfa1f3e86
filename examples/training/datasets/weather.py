"""Two typical years of hourly weather from the package `pvlib`, in place of the paper's Weather.

Typical meteorological years of NREL (TMY3): Greensboro, North Carolina, and Sand Point, Alaska.
Each is made of months of different years, smoothed where they meet.
"""

import numpy as np
import torch
from torch import Tensor

from .data import Data
from .series import forecasting, packaged_file

FILES = ("data/723170TYA.CSV", "data/703165TY.csv")
# What both files have for every hour.
COLUMNS = (
    "GHI (W/m^2)",
    "DNI (W/m^2)",
    "DHI (W/m^2)",
    "TotCld (tenths)",
    "OpqCld (tenths)",
    "Dry-bulb (C)",
    "Dew-point (C)",
    "RHum (%)",
    "Wspd (m/s)",
    "Pwat (cm)",
)


def weather() -> Data:
    """Ten quantities of two years; `series.forecasting` has shapes and split."""
    return forecasting([_read(file) for file in FILES])


def _read(name: str) -> Tensor:
    """One year, float32 [8760, 10]."""
    with packaged_file("pvlib", name).open(encoding="utf-8") as file:
        file.readline()  # the station
        names = file.readline().rstrip().split(",")
        columns = [names.index(column) for column in COLUMNS]
        return torch.from_numpy(np.loadtxt(file, np.float32, delimiter=",", usecols=columns))
