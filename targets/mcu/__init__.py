"""Microcontroller targets: static C in a Model Library Format archive."""

from tbn_compile.targets.mcu.target import McuTarget

__all__ = ["McuTarget"]
