"""What fio tells of a run, worked out once for both of its forms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qedasync.bench.histogram import Histogram
from qedasync.bench.result import Result

__all__ = [
    "ALONE",
    "DEPTHS",
    "LATENCIES",
    "PERCENTS",
    "Direction",
    "Spread",
    "depth_shares",
    "directions",
    "latency_shares",
]

PERCENTS = (1.0, 5.0, *map(float, range(10, 100, 10)), 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)

_STEPS = (2, 4, 10, 20, 50, 100, 250, 500, 750, 1000)
LATENCIES = {
    "ns": ([str(n) for n in _STEPS], _STEPS),
    "us": ([str(n) for n in _STEPS], [n * 1_000 for n in _STEPS]),
    "ms": ([*(str(n) for n in _STEPS), "2000", ">=2000"], [n * 1_000_000 for n in (*_STEPS, 2000)]),
}
"""Unit -> the names of its buckets, and their upper bounds in nanoseconds; the last has none."""

DEPTHS = ("1", "2", "4", "8", "16", "32", ">=64")

ALONE = {"0": 0.0, "4": 100.0, "8": 0.0, "16": 0.0, "32": 0.0, "64": 0.0, ">=64": 0.0}
"""How many operations are begun, or end, at once: one, which fio counts among up to 4."""

_WINDOW = 0.5  # seconds that fio averages rates over


@dataclass(frozen=True, slots=True)
class Spread:
    """Numbers in a nutshell; all 0 if there are none."""

    least: float
    most: float
    mean: float
    deviation: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of these numbers."""
        n = len(values)
        if n == 0:
            return cls(0.0, 0.0, 0.0, 0.0, 0)
        mean = sum(values) / n
        squares = sum((value - mean) ** 2 for value in values)
        return cls(min(values), max(values), mean, math.sqrt(squares / max(1, n - 1)), n)


@dataclass(frozen=True, slots=True)
class Direction:
    """All reads, all writes or all trims of a run.

    Attributes:
        name: ``"read"``, ``"write"`` or ``"trim"``.
        times: how long each took.
        length: bytes of each.
        elapsed_ns: of the run; 0 if there were none.
        iops: the spread of operations a second, over windows of half a second.
    """

    name: str
    times: Histogram
    length: int
    elapsed_ns: int
    iops: Spread

    @property
    def count(self) -> int:
        return len(self.times)

    @property
    def size(self) -> int:
        return self.count * self.length

    @property
    def per_second(self) -> float:
        return self.count * 1e9 / self.elapsed_ns if self.elapsed_ns else 0.0


def directions(result: Result) -> list[Direction]:
    """Reads, writes and trims, in this order."""
    workload = result.workload
    kinds = (
        ("read", result.reads, workload.block_size),
        ("write", result.writes, workload.write_length),
        ("trim", result.trims, workload.write_length),
    )
    return [
        Direction(name, times, length, *_over_time(result, kind, len(times)))
        for kind, (name, times, length) in enumerate(kinds)
    ]


def _over_time(result: Result, kind: int, count: int) -> tuple[int, Spread]:
    if count == 0:
        return 0, Spread.of(())
    rates = [rate for _, rate in result.series.rates(kind, _WINDOW)]
    return max(1, result.elapsed_ns), Spread.of(rates)


def latency_shares(result: Result) -> Iterator[tuple[str, dict[str, float]]]:
    """Each unit with the percentage of all operations in each of its buckets."""
    bounds = [0, *(bound for _, bounds in LATENCIES.values() for bound in bounds)]
    counts = [0] * (len(bounds) + 1)
    for times in (result.reads, result.writes, result.trims):
        counts = [a + b for a, b in zip(counts, times.between(bounds), strict=True)]
    total, ends = max(1, sum(counts)), iter(counts[1:])
    for unit, (names, _) in LATENCIES.items():
        yield unit, {name: 100.0 * next(ends) / total for name in names}


def depth_shares(depth: int) -> dict[str, float]:
    """The percentage of the run that so many operations were in flight: each task has one."""
    bounds = [1 << power for power in range(len(DEPTHS))]
    return {
        name: 100.0 if low <= depth < high else 0.0
        for name, (low, high) in zip(DEPTHS, pairwise([*bounds, 1 << 62]), strict=True)
    }
