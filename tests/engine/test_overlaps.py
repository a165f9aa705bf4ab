"""Which clusters the L2 tables occupy, and which of them two entries claim."""

from __future__ import annotations

from array import array

import pytest

from qedasync.engine.overlaps import TableMap
from qedasync.format.geometry import Geometry
from tests.engine.harness import CLUSTER

END = 64 * CLUSTER


def table_map(l1: dict[int, int], *, table_size: int = 2, **options: int) -> TableMap:
    """A map of L1 entries given as cluster numbers by index; L1 itself ends at cluster 3."""
    geometry = Geometry(CLUSTER, table_size, 1, CLUSTER)
    entries = array("Q", bytes(8 * geometry.table_entries))
    for index, cluster in l1.items():
        entries[index] = cluster * CLUSTER
    return TableMap(geometry, entries, END, **options)


def test_covers_every_cluster_of_a_table_and_no_other() -> None:
    made = table_map({0: 8, 700: 20})
    covered = [number for number in range(64) if made.covers([number * CLUSTER])]
    assert covered == [8, 9, 20, 21]
    assert made.covers([5 * CLUSTER, 21 * CLUSTER])
    assert not made.covers([])


def test_covers_added_table() -> None:
    made = table_map({0: 8})
    made.add(30 * CLUSTER)
    assert made.covers([31 * CLUSTER])
    assert not made.is_shared(30 * CLUSTER)


@pytest.mark.parametrize("cluster", [0, 1, 2, 63, 64, 1 << 40])
def test_covers_entry_that_is_no_table_does_not_count(cluster: int) -> None:
    made = table_map({0: cluster})
    assert not made.covers([cluster * CLUSTER])


@pytest.mark.parametrize(
    ("l1", "shared"),
    [
        ({0: 8, 1: 10}, False),
        ({0: 8, 1: 8}, True),
        ({0: 8, 900: 8}, True),
        ({0: 8, 1: 9}, True),
        ({0: 9, 1: 8}, True),
        ({0: 8, 1: 20, 2: 20}, False),
    ],
)
def test_is_shared_table_of_two_entries(l1: dict[int, int], shared: bool) -> None:
    assert table_map(l1).is_shared(l1[0] * CLUSTER) is shared


def test_is_shared_with_an_added_table() -> None:
    made = table_map({0: 8})
    made.add(9 * CLUSTER)
    assert made.is_shared(8 * CLUSTER)
    assert made.is_shared(9 * CLUSTER)


def test_too_many_tables_only_those_named_twice_are_known() -> None:
    made = table_map({0: 8, 1: 10, 2: 12, 600: 8}, max_clusters=2)
    assert not made.is_whole
    assert not made.covers([8 * CLUSTER])
    assert made.is_shared(8 * CLUSTER)
    assert not made.is_shared(10 * CLUSTER)
    made.add(30 * CLUSTER)
    assert not made.covers([30 * CLUSTER])
