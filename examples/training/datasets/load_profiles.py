"""A year of electric loads from the package `simbench`, in place of the paper's ECL.

Households, trades, industry, heat pumps, storage and grid areas of the SimBench project, 2016, as
active power in quarters of an hour, each relative to its own peak.
"""

import numpy as np
import torch

from .data import Data
from .series import forecasting, packaged_file

FILE = "networks/1-complete_data-mixed-all-0-sw/LoadProfile.csv"
QUARTERS = 4


def load_profiles() -> Data:
    """Hourly means of the 96 active loads; `series.forecasting` has shapes and split."""
    path = packaged_file("simbench", FILE)
    with path.open(encoding="utf-8") as file:
        names = file.readline().rstrip().split(";")
        active = [column for column, name in enumerate(names) if name.endswith("_pload")]
        power = np.loadtxt(file, np.float32, delimiter=";", usecols=active)
    hourly = power.reshape(-1, QUARTERS, len(active)).mean(1)
    return forecasting([torch.from_numpy(hourly)])
