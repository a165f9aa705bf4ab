"""Ratios, shares, and the way to JSON and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.results import Report
from tests.benchmarks.examples import measured, report, row


def test_ratios_are_to_the_rival_who_was_best_in_the_round() -> None:
    found = row()
    assert found.ratios == [2.0, 1.5, 4.0]
    assert found.ratio == 2.0
    assert found.holds


def test_row_below_its_bar_does_not_hold() -> None:
    assert not row(bar=2.1).holds
    assert row(bar=None).holds


def test_row_without_rival_has_no_ratio_and_breaks_its_promise() -> None:
    alone = row()
    alone.sides = alone.of("ours")
    assert alone.ratio is None
    assert alone.ratios == []
    assert alone.best_rival is None
    assert alone.share is None
    assert not alone.holds


def test_share_is_of_the_first_limit() -> None:
    found = row()
    found.sides.append(measured("memory", "limit", 1.0, 1.0, 1.0))
    assert found.share == 0.75


def test_ratio_beside_a_side_is_ours_over_its() -> None:
    found = row()
    assert found.best_rival is not None
    assert found.best_rival.name == "slow & <steady>"
    assert found.ratio_beside(found.best_rival) == 3.0
    assert found.ratio_beside(found.ours) == found.ratio


def test_report_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(report().as_json())
    assert Report.load(path) == report()


def test_report_json_has_the_figures_that_follow(tmp_path: Path) -> None:
    assert '"ratio": 2.0' in report().as_json()
    assert '"share": 0.75' in report().as_json()


def test_report_groups_leave_out_the_points_of_figures() -> None:
    groups = report().groups()
    assert list(groups) == ["Reads", "Writes"]
    assert [each.name for each in report().headline()] == ["read"]


def test_report_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("{}")
    with pytest.raises(KeyError):
        Report.load(path)
