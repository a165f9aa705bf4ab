"""Numbers for people."""

from __future__ import annotations

import pytest

from benchmarks import words
from tests.benchmarks.examples import report, row


@pytest.mark.parametrize(
    ("value", "text"),
    [(412_345.0, "412 K/s"), (9_120.0, "9.12 K/s"), (999.9, "1 K/s"), (850.0, "850 /s"),
     (0.42, "0.42 /s"), (1.25e6, "1.25 M/s")],
)  # fmt: skip
def test_rate_has_three_digits(value: float, text: str) -> None:
    assert words.rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.222, "1.22"), (0.0844, "0.08"), (32.57, "32.6"), (150.2, "150")]
)
def test_ratio_has_as_many_decimals_as_mean_something(value: float, text: str) -> None:
    assert words.ratio(value) == text + words.TIMES


def test_nothing_is_a_dash() -> None:
    assert words.ratio(None) == words.share(None) == words.spread([]) == words.NONE


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 B"), (65536, "64 KiB"), (1 << 46, "64 TiB")]
)
def test_size_uses_powers_of_two(value: int, text: str) -> None:
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.2, "1.2 s"), (4.07e-3, "4.07 ms"), (2e-6, "2 µs"), (8.12e-7, "812 ns")]
)
def test_seconds_choose_their_unit(value: float, text: str) -> None:
    assert words.seconds(value) == text


def test_line_tells_ratio_verdict_and_limit() -> None:
    line = words.line(row(bar=2.5))
    assert line.startswith("read ")
    assert "MISSED" in line
    assert "0.75 of bare" in line


def test_line_of_figure_and_bound_have_their_names() -> None:
    assert words.line(report().figures[0]).split()[:2] == ["sweep", "1"]
    assert "MISSED: 3 ms" in words.line(report().bounds[0])
