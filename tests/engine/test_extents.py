"""Runs join exactly where one goes on where the other ends, in every respect."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from qedasync.engine.extents import Extent, ExtentKind, merge, slice_extents

DATA = Extent(0, 10, ExtentKind.DATA, False, offset=100, path="a")
ZERO = Extent(0, 10, ExtentKind.ZERO, True)


def test_merge_contiguous_runs_joins_them() -> None:
    after = replace(DATA, start=10, offset=110)
    assert list(merge([DATA, after])) == [replace(DATA, length=20)]


def test_merge_runs_without_offset_joins_them() -> None:
    assert list(merge([ZERO, replace(ZERO, start=10)])) == [replace(ZERO, length=20)]


def test_merge_three_runs_joins_all() -> None:
    runs = [replace(ZERO, start=start) for start in (0, 10, 20)]
    assert list(merge(runs)) == [replace(ZERO, length=30)]


def test_merge_nothing_gives_nothing() -> None:
    assert list(merge([])) == []


@pytest.mark.parametrize(
    "change",
    [
        {"start": 11},
        {"kind": ExtentKind.BACKING},
        {"zero": True},
        {"depth": 1},
        {"path": "b"},
        {"offset": 111},
        {"offset": None},
    ],
    ids=str,
)
def test_merge_run_that_differs_stays_apart(change: dict[str, Any]) -> None:
    after = replace(replace(DATA, start=10, offset=110), **change)
    assert list(merge([DATA, after])) == [DATA, after]


def test_slice_extents_are_extents_cut_at_both_ends() -> None:
    runs = [(40960, 2), (1, 3), (0, 1), (8192, 1)]
    found = slice_extents(runs, 4196, 4096 * 8 - 1, 4096, "x")
    assert found == [
        Extent(4196, 8092, ExtentKind.DATA, False, offset=41060, path="x"),
        Extent(12288, 12288, ExtentKind.ZERO, True),
        Extent(24576, 4096, ExtentKind.UNALLOCATED, True),
        Extent(28672, 4095, ExtentKind.DATA, False, offset=8192, path="x"),
    ]
    assert {type(run) for run in found} == {Extent}
    with pytest.raises(FrozenInstanceError):
        found[0].start = 1  # type: ignore[misc]
