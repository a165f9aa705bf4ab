"""The page: whole, safe, and in need of nothing else."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from benchmarks.page import page
from benchmarks.results import Curve, Report
from tests.benchmarks.examples import report, row

VOID = {"meta"}


class Checker(HTMLParser):
    """Fails on tags that do not match; collects what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(found: Report) -> Checker:
    checker = Checker()
    checker.feed(page(found))
    checker.close()
    assert checker.open == []
    return checker


def test_page_is_well_formed_and_loads_nothing() -> None:
    tags = checked(report()).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "image"}
    assert not [key for _, attrs in tags for key in attrs if key in ("src", "href", "onload")]


def test_page_has_every_case_side_command_and_fact() -> None:
    text = checked(report()).text
    for word in (
        "What read does",
        "slow & <steady>",
        "moody IMAGE",
        "2 cores, Fast & Co",
        "Missed",
    ):
        assert word in text


def test_page_draws_a_dot_for_each_ratio_and_a_curve_for_each_side() -> None:
    tags = checked(report()).tags
    assert sum(tag == "circle" for tag, _ in tags) == 2
    assert sum(tag == "polyline" for tag, _ in tags) == 1


def test_page_case_that_misses_its_bar_is_marked() -> None:
    missed = [attrs for tag, attrs in checked(Report(rows=[row(bar=9.0)])).tags
              if attrs.get("class") == "dot missed"]  # fmt: skip
    assert len(missed) == 1
    assert "dot missed" not in page(Report(rows=[row(bar=1.0)]))


def test_page_of_nothing_is_a_page() -> None:
    assert "What these figures do not say" in checked(Report()).text


@pytest.mark.parametrize(
    ("x_unit", "y_unit", "words"),
    [("", "/s", ["64", "5 K/s"]), ("B", "/s", ["64 B"]), ("%", "ns", ["98.4375", "µs"])],
)
def test_page_figure_units_are_written_out(x_unit: str, y_unit: str, words: list[str]) -> None:
    found = report()
    found.figures[0].x_unit, found.figures[0].y_unit = x_unit, y_unit
    text = checked(found).text
    assert all(word in text for word in words)


def test_page_figure_curve_with_a_gap_shows_a_dash() -> None:
    found = report()
    found.figures[0].curves.append(Curve("other", 1, [(64.0, 2000.0)]))
    assert "2 K/s" in checked(found).text
