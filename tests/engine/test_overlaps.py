"""Which clusters the L2 tables occupy."""

from __future__ import annotations

from array import array

import pytest

from qedasync.engine.overlaps import TableMap
from qedasync.format.geometry import Geometry

CLUSTER = 4096
GEOMETRY = Geometry(cluster_size=CLUSTER, table_size=2, header_size=1, l1_table_offset=CLUSTER)
FIRST = 3 * CLUSTER  # behind L1
END = 64 * CLUSTER


def table_map(*offsets: int, room: int = 1000) -> TableMap:
    """The map of an L1 with these entries among zeroes."""
    return TableMap(GEOMETRY, array("Q", [0, *offsets, 0]), END, room)


def test_covers_every_cluster_of_every_table_and_no_other() -> None:
    tables = table_map(FIRST, FIRST + 4 * CLUSTER)
    covered = [i for i in range(64) if tables.covers([i * CLUSTER])]
    assert covered == [3, 4, 7, 8]
    assert tables.covers([0, 1, 4 * CLUSTER])
    assert not tables.covers([0, 1])


@pytest.mark.parametrize(
    "entry", [CLUSTER, FIRST + 512, END - CLUSTER, END, 2**63, 2**64 - CLUSTER, 0]
)
def test_covers_what_is_no_table_is_ignored(entry: int) -> None:
    assert not table_map(entry).covers(range(0, 2**64, 2**52))
    assert not table_map(entry).covers([entry, entry + CLUSTER])


@pytest.mark.parametrize("step", [0, CLUSTER, -CLUSTER])
def test_is_shared_same_or_half_the_same_table_is_true_for_both(step: int) -> None:
    offset = FIRST + 10 * CLUSTER
    tables = table_map(FIRST, offset, *[FIRST + 20 * CLUSTER] * (step == 0), offset + step)
    assert tables.is_shared(offset)
    assert tables.is_shared(offset + step)
    assert not tables.is_shared(FIRST)


def test_is_shared_far_apart_in_l1_is_found() -> None:
    l1 = array("Q", bytes(8 * 3000))
    l1[0] = l1[2999] = FIRST
    assert TableMap(GEOMETRY, l1, END).is_shared(FIRST)


def test_is_shared_neighbours_are_not() -> None:
    tables = table_map(*range(FIRST, END, 2 * CLUSTER))
    assert not any(tables.is_shared(offset) for offset in range(FIRST, END, 2 * CLUSTER))


def test_add_new_table_is_covered_and_alone() -> None:
    tables = table_map(FIRST)
    tables.add(FIRST + 2 * CLUSTER)
    assert tables.covers([FIRST + 3 * CLUSTER])
    assert not tables.is_shared(FIRST + 2 * CLUSTER)


def test_too_many_tables_forgets_them_and_knows_those_named_twice() -> None:
    tables = table_map(*range(FIRST, END, 2 * CLUSTER), FIRST, room=8)
    assert not tables.is_whole
    assert not tables.covers([FIRST])
    assert tables.is_shared(FIRST)
    assert not tables.is_shared(FIRST + 2 * CLUSTER)
    tables.add(END)
    assert not tables.covers([END])


def test_one_table_named_everywhere_is_not_too_many() -> None:
    tables = TableMap(GEOMETRY, array("Q", [FIRST]) * 5000, END, 8)
    assert tables.is_whole
    assert tables.is_shared(FIRST)
