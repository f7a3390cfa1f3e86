"""Where a convolution's block of outputs, and the inputs that it needs, lie in flat arrays.

The inputs are parted into planes such that a tap of the kernel is one plane and one shift in it:
neighbouring outputs then read neighbouring inputs, whatever the strides and dilations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tbn_compile.targets.llvm.kernels.extents import ravel


@dataclass(frozen=True)
class Axis:
    """A spatial axis of a block.

    Attributes:
        kernel, stride, dilation: of the convolution.
        outputs: of the block along it.
    """

    kernel: int
    stride: int
    dilation: int
    outputs: int

    @property
    def planes(self) -> int:
        """How many planes there are: taps a multiple of the stride apart share one."""
        return 1 + max(int(self.place(tap)[0]) for tap in range(min(self.kernel, self.stride)))

    @property
    def reach(self) -> int:
        """The largest shift."""
        return (self.kernel - 1) * self.dilation // self.stride

    @property
    def extent(self) -> int:
        """Positions of a plane."""
        return self.outputs + self.reach

    def place(self, tap: Any) -> tuple[Any, Any]:
        """The plane of a tap, and how far behind an output its input lies there."""
        return (tap * self.dilation) % self.stride, (tap * self.dilation) // self.stride


@dataclass(frozen=True)
class Grid:
    """All axes of a block.

    Attributes:
        axes: of the image, first to last.
        lanes: numbers of a vector register.
        vectors: of neighbouring outputs that are computed at a time.
    """

    axes: tuple[Axis, ...]
    lanes: int
    vectors: int

    @property
    def width(self) -> int:
        """Outputs that are computed at a time."""
        return self.lanes * self.vectors

    @property
    def outputs(self) -> tuple[int, ...]:
        """The outputs of a block along each axis."""
        return tuple(axis.outputs for axis in self.axes)

    @property
    def extents(self) -> tuple[int, ...]:
        """The positions of a plane along each axis."""
        return tuple(axis.extent for axis in self.axes)

    @property
    def phases(self) -> tuple[int, ...]:
        """The planes along each axis."""
        return tuple(axis.planes for axis in self.axes)

    @property
    def planes(self) -> int:
        """All planes."""
        return prod(self.phases)

    @property
    def positions(self) -> int:
        """Flat positions of a plane that are computed: the outputs, what lies between, a rest."""
        last = ravel([outputs - 1 for outputs in self.outputs], self.extents)
        return -(-(int(last) + 1) // self.width) * self.width

    @property
    def length(self) -> int:
        """Flat positions of a plane, those that only serve to fill a vector among them."""
        reached = self.positions + int(ravel([axis.reach for axis in self.axes], self.extents))
        return -(-max(reached, prod(self.extents)) // self.lanes) * self.lanes

    def place(self, taps: Sequence[Any]) -> tuple[Any, Any]:
        """The plane of a tap, and its shift in the flat array."""
        places = [axis.place(tap) for axis, tap in zip(self.axes, taps, strict=True)]
        planes, shifts = zip(*places, strict=True)
        return ravel(planes, self.phases), ravel(shifts, self.extents)
