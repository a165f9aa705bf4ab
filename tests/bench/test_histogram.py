"""The histogram against a naive reference: the sorted list of all values."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qedasync.bench.histogram import Histogram

values = st.lists(
    st.one_of(st.integers(0, 300), st.integers(0, 10**7), st.integers(0, 2**63 - 1)),
    min_size=1,
    max_size=200,
)


def filled(numbers: list[int]) -> Histogram:
    histogram = Histogram()
    for number in numbers:
        histogram.record(number)
    return histogram


@given(values, st.lists(st.floats(0, 100), min_size=1).map(sorted))
def test_percentiles_any_values_within_a_64th_of_nearest_rank(
    numbers: list[int], percents: list[float]
) -> None:
    ordered = sorted(numbers)
    found = filled(numbers).percentiles(percents)
    for percent, value in zip(percents, found, strict=True):
        true = ordered[min(len(ordered), max(1, math.ceil(percent / 100 * len(ordered)))) - 1]
        assert abs(value - true) <= true / 64


def test_percentiles_small_values_are_exact() -> None:
    histogram = filled(list(range(1, 101)))
    assert histogram.percentiles([0, 1, 50, 90, 99, 99.5, 100]) == [1, 1, 50, 90, 99, 100, 100]


def test_percentile_one_value_is_never_above_the_largest() -> None:
    histogram = filled([1_000_001])
    assert histogram.percentile(50) <= histogram.largest == 1_000_001


@given(values)
def test_extremes_any_values_are_the_list_s(numbers: list[int]) -> None:
    histogram = filled(numbers)
    assert histogram.largest == max(numbers)
    assert min(numbers) - min(numbers) / 64 <= histogram.smallest <= min(numbers)
    assert len(histogram) == len(numbers)


def test_mean_and_stddev_are_near_the_list_s() -> None:
    numbers = [n * n for n in range(1, 2000)]
    histogram = filled(numbers)
    assert histogram.mean == pytest.approx(statistics.mean(numbers), rel=1 / 64)
    assert histogram.stddev == pytest.approx(statistics.pstdev(numbers), rel=1 / 64)


def test_empty_histogram_is_all_zero() -> None:
    histogram = Histogram()
    assert histogram.percentiles([50, 99]) == [0, 0]
    assert (len(histogram), histogram.mean, histogram.stddev) == (0, 0, 0)
    assert (histogram.smallest, histogram.largest) == (0, 0)


@pytest.mark.parametrize("power", [7, 8, 20, 62])
def test_record_around_a_power_of_two_stays_in_order(power: int) -> None:
    around = [(1 << power) - 1, 1 << power, (1 << power) + (1 << power >> 5)]
    found = filled(around).percentiles([33, 66, 100])
    assert found == sorted(set(found))
