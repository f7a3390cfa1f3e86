"""The data sets of the recipes, one file each."""

from collections.abc import Callable

from .data import Data
from .fashion_mnist import fashion_mnist, plain_fashion_mnist
from .load_profiles import load_profiles
from .solids import classification, segmentation
from .weather import weather

DATASETS: dict[str, Callable[[], Data]] = {
    "fashion_mnist": fashion_mnist,
    "plain_fashion_mnist": plain_fashion_mnist,
    "solids": classification,
    "solid_parts": segmentation,
    "load_profiles": load_profiles,
    "weather": weather,
}
