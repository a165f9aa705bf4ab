"""A histogram of durations that costs little to fill: counts in buckets of ever larger width.

Each power of two is cut into 64 buckets, so a value is known to within 1/64 of itself whatever its
size, and recording one is a shift and an addition. Knows nothing of images.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence

__all__ = ["Histogram"]

_BITS = 7
_HALF = 1 << (_BITS - 1)  # buckets in a power of two
_BUCKETS = (63 - _BITS + 2) * _HALF + _HALF  # up to 2**63 - 1


class Histogram:
    """Counts of non-negative integers below 2**63.

    Attributes:
        largest: the largest value, exactly; 0 if there is none.
    """

    __slots__ = ("_counts", "largest")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.largest = 0

    def record(self, value: int) -> None:
        """Count ``value``."""
        shift = value.bit_length() - _BITS
        if shift > 0:
            self._counts[(shift << (_BITS - 1)) + (value >> shift)] += 1
        else:
            self._counts[value] += 1
        if value > self.largest:
            self.largest = value

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def smallest(self) -> int:
        """The smallest value, or up to 1/64 less; 0 if there is none."""
        return next((low for low, _, _ in self.filled()), 0)

    @property
    def mean(self) -> float:
        """The mean; 0 if there is no value."""
        n = len(self)
        return sum(middle * count for _, middle, count in self.filled()) / n if n else 0.0

    @property
    def stddev(self) -> float:
        """The standard deviation; 0 if there is no value."""
        n, mean = len(self), self.mean
        squares = sum((middle - mean) ** 2 * count for _, middle, count in self.filled())
        return math.sqrt(squares / n) if n else 0.0

    def percentile(self, percent: float) -> int:
        """The smallest value that ``percent`` of all values do not exceed; 0 if there is none."""
        return self.percentiles((percent,))[0]

    def percentiles(self, percents: Sequence[float]) -> list[int]:
        """:meth:`percentile` of each of ``percents``, which must ascend."""
        n = len(self)
        filled, seen, value, found = self.filled(), 0, 0, []
        for percent in percents:
            rank = min(n, max(1, math.ceil(percent / 100 * n)))
            while seen < rank <= n:
                _, value, count = next(filled)
                seen += count
            found.append(min(value, self.largest))
        return found

    def between(self, bounds: Sequence[int]) -> list[int]:
        """How many values are below ``bounds[0]``, from there to below ``bounds[1]``, and so on;
        the last number is of those at or above the last bound."""
        counts = [0] * (len(bounds) + 1)
        for low, _, count in self.filled():
            counts[bisect_right(bounds, low)] += count
        return counts

    def filled(self) -> Iterator[tuple[int, int, int]]:
        """(least value, middle value, count) of each bucket that has any, from small to large."""
        for index, count in enumerate(self._counts):
            if count:
                shift = max(0, index // _HALF - 1)
                low = (index - shift * _HALF) << shift
                yield low, low + (1 << shift) // 2, count
