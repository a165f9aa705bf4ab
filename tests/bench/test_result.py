"""Samples over time: rates that add up, and a bounded number of them."""

from __future__ import annotations

from qedasync.bench import Result, Workload
from qedasync.bench.result import Sample, Series
from qedasync.bench.usage import Usage


def series(*counts: int, period_ns: int = 100_000_000) -> Series:
    found = Series()
    for number, count in enumerate(counts, 1):
        found.add(Sample(number * period_ns, (count, 2 * count, 0)))
    return found


def rounded(rates: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(round(at, 6), round(rate, 6)) for at, rate in rates]


def test_rates_are_a_second_s() -> None:
    assert rounded(series(10, 30).rates(0)) == [(0.1, 100), (0.2, 200)]
    assert rounded(series(10, 30).rates(1)) == [(0.1, 200), (0.2, 400)]


def test_rates_of_windows_join_samples() -> None:
    found = series(*range(10, 130, 10)).rates(0, 0.5)
    assert rounded(found) == [(0.5, 100), (1.0, 100)]


def test_rates_of_a_run_shorter_than_a_window_are_one() -> None:
    assert rounded(series(10, 20).rates(0, 0.5)) == [(0.2, 100)]


def test_rates_of_no_time_are_none() -> None:
    assert Series().rates(0) == []
    assert series(1, period_ns=0).rates(0) == []


def test_series_of_a_long_run_stays_short_and_keeps_its_ends() -> None:
    found = Series()
    for number in range(1, 100_001):
        found.add(Sample(number, (number, 0, 0)))
    assert len(found.samples) <= 4097
    assert found.samples[0].elapsed_ns == 0
    assert found.samples[-1].elapsed_ns == 100_000
    assert found.period > 0.1
    times = [sample.elapsed_ns for sample in found.samples]
    assert times == sorted(times)


def test_result_total_is_of_all_kinds() -> None:
    result = Result(Workload())
    result.reads.record(1)
    result.writes.record(1)
    result.trims.record(1)
    result.flushes.record(1)
    assert result.total == 3
    assert result.sample(7) == Sample(7, (1, 1, 1))


def test_usage_since_is_the_difference() -> None:
    before = Usage(1.0, 2.0, 3, 4, 5)
    assert Usage(2.0, 4.0, 6, 8, 10).since(before) == before
    assert Usage.now().user > 0
