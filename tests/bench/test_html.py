"""The page: whole, safe, readable without seeing it, and in need of nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from qedasync.bench import Report, Result, Workload
from qedasync.bench.plot import Axis, Curve, linear_axis, log_axis, plot
from qedasync.bench.result import Sample
from tests.bench.test_report import make_report

VOID = {"meta"}


class Checker(HTMLParser):
    """Fails on tags that do not match; collects what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make_page(**options: Any) -> str:
    report = make_report(**options)
    for number in range(1, 21):
        report.result.series.add(Sample(number * 100_000_000, (number * 50, number // 2, 0)))
    return replace(report, command="qedasync bench --html x").html()


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_page_is_well_formed_and_loads_nothing() -> None:
    page = make_page()
    tags = checked(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "image"}
    assert not [key for _, attrs in tags for key in attrs if key in ("src", "href", "onload")]
    assert "url(" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page


def test_page_plots_have_names_and_words() -> None:
    page = make_page()
    plots = re.findall(r"<svg viewBox=\"0 0 720.*?</svg>", page, re.DOTALL)
    assert len(plots) == 2
    for svg in plots:
        root = ElementTree.fromstring(svg)
        named = str(root.get("aria-labelledby")).split()
        assert [child.get("id") for child in root[:2]] == named
        assert all(child.text for child in root[:2])
        assert len([child for child in root if child.tag == "polyline"]) == 2
    assert "Half of the reads took at most 50" in page
    assert "<caption>" in page
    assert page.count("<details>") == 2


def test_page_works_in_light_and_dark() -> None:
    page = make_page()
    assert "color-scheme: light dark" in page
    dark = page.split("prefers-color-scheme: dark")[1].split("}")[0]
    for name in set(re.findall(r"var\(--(\w+)\)", page)):
        assert f"--{name}:" in dark


def test_page_of_hostile_names_shows_them_as_text() -> None:
    report = replace(make_report(), image="<script>alert(1)</script>\udcff", command="a & b <c>")
    page = report.html()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b &lt;c&gt;" in page
    checked(page)


def test_page_of_a_run_without_operations_says_so() -> None:
    report: Report = replace(make_report(), result=Result(Workload().fitted(1 << 20)))
    page = report.html()
    checked(page)
    assert "No operation was finished." in page
    assert "<polyline" not in page


@pytest.mark.parametrize("high", [0.0, 1e-6, 0.7, 1.0, 3.0, 99.5, 123_456.0])
def test_linear_axis_reaches_the_highest_value_with_few_marks(high: float) -> None:
    axis = linear_axis("x", high, str)
    assert axis.low == 0.0
    assert axis.high >= high
    assert 2 <= len(axis.ticks) <= 8
    assert linear_axis("x", max(high, 1.0), str, exact=True).high == max(high, 1.0)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (1, 10), (999, 1001), (2.5, 1e9)])
def test_log_axis_spans_whole_powers(low: float, high: float) -> None:
    axis = log_axis("x", low, high, str)
    assert axis.low <= low
    assert axis.high >= high
    assert axis.share(axis.low) == 0.0
    assert axis.share(axis.high) == 1.0


def test_log_axis_equal_ratios_are_equal_steps() -> None:
    axis = Axis("x", 1.0, 10_000.0, (), log=True)
    assert axis.share(100.0) == pytest.approx(0.5)
    assert axis.share(0.0) == 0.0


def test_plot_keeps_curves_inside_the_picture() -> None:
    axis = linear_axis("x", 10, str)
    svg = plot("p", "t", "d", axis, axis, [Curve("c", 0, [(0, 0), (10, 10), (99, 99), (-5, -5)])])
    points = re.findall(r"([\d.]+),([\d.]+)", re.findall(r'points="(.*?)"', svg)[0])
    assert all(0 <= float(x) <= 720 and 0 <= float(y) <= 300 for x, y in points)
