"""Clusters come from the end of the file, one after another."""

from __future__ import annotations

from qedasync.engine.allocator import Allocator
from qedasync.format.geometry import Geometry

GEOMETRY = Geometry(cluster_size=4096, table_size=2, header_size=1, l1_table_offset=4096)


def test_take_hands_out_runs_one_after_another() -> None:
    allocator = Allocator(GEOMETRY, 3 * 4096)
    assert [allocator.take(1), allocator.take(2), allocator.take(1)] == [12288, 16384, 24576]
    assert allocator.end_of_file == 7 * 4096


def test_take_nothing_moves_nothing() -> None:
    allocator = Allocator(GEOMETRY, 3 * 4096)
    assert allocator.take(0) == allocator.end_of_file == 12288
