"""How cost grows with size, and whether it grows faster than that.

The fixed cost of a run (the start of sh or of Python) is subtracted: cost and size of the
smallest are subtracted from all others. A straight line is fitted to the logarithms of the
larger half by least squares; a point closer to the fixed cost has more noise and less weight.
The slope is the exponent: 1 when twice the size costs twice as much, 2 when it costs four
times as much. If the largest costs hardly more than the smallest, the exponent is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

BAR = 1.15
"""The greatest exponent that counts as linear: measurements vary by some hundredths, and
large inputs exceed the caches."""

# A fraction of the smallest cost; a difference below it is noise.
_NOTICED = 0.1


@dataclass(frozen=True)
class Point:
    """The processor time of one size, ours and that of a program it is compared to."""

    size: float
    ours_s: float
    floor_s: float


@dataclass(frozen=True)
class Growth:
    """The cost of one thing at several sizes, the smallest first."""

    what: str
    points: tuple[Point, ...]
    bar: float = BAR

    measure = "growth"

    @property
    def exponent(self) -> float:
        """The power of size with which the cost grows: 1 is linear, 0 is constant."""
        return exponent([one.size for one in self.points], [one.ours_s for one in self.points])

    @property
    def ours_s(self) -> float:
        """The cost of the largest size."""
        return self.points[-1].ours_s

    @property
    def theirs_s(self) -> float:
        """The cost of the largest size in the program it is compared to."""
        return self.points[-1].floor_s

    @property
    def value(self) -> float:
        """The exponent, which the bar limits."""
        return self.exponent


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent with which cost grows; see the top of this module.

    Raises ValueError for fewer than four sizes.
    """
    if len(sizes) < 4 or len(sizes) != len(costs):
        raise ValueError(f"{len(sizes)} sizes are too few")
    half = len(sizes) // 2
    if costs[-1] - costs[0] < _NOTICED * costs[0]:
        return 0.0
    more = [
        (log(size - sizes[0]), log(cost - costs[0]), (1 - costs[0] / cost) ** 2)
        for size, cost in zip(sizes[half:], costs[half:])
        if cost > costs[0]
    ]
    return _slope(more)


def _slope(points: Sequence[tuple[float, float, float]]) -> float:
    """The slope of the line through points (x, y, weight); 0 for a single point."""
    total = sum(weight for _, _, weight in points)
    middle = sum(x * weight for x, _, weight in points) / total
    height = sum(y * weight for _, y, weight in points) / total
    spread = sum((x - middle) ** 2 * weight for x, _, weight in points)
    products = sum((x - middle) * (y - height) * weight for x, y, weight in points)
    return products / spread if spread else 0.0
