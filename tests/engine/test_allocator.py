"""Clusters come from the end of the file, one after another."""

from __future__ import annotations

import errno

import pytest

from qedasync.engine.allocator import Allocator
from qedasync.errors import StorageError
from qedasync.format.geometry import Geometry

GEOMETRY = Geometry(cluster_size=4096, table_size=2, header_size=1, l1_table_offset=4096)


def test_take_hands_out_runs_one_after_another() -> None:
    allocator = Allocator(GEOMETRY, 3 * 4096)
    assert [allocator.take(1), allocator.take(2), allocator.take(1)] == [12288, 16384, 24576]
    assert allocator.end_of_file == 7 * 4096


def test_take_nothing_moves_nothing() -> None:
    allocator = Allocator(GEOMETRY, 3 * 4096)
    assert allocator.take(0) == allocator.end_of_file == 12288


@pytest.mark.parametrize(("n", "fits"), [(1, True), (2, False), (1 << 60, False)])
def test_take_past_what_a_file_can_be_is_an_error_and_moves_nothing(n: int, fits: bool) -> None:
    end = 2**63 - 2 * 4096
    allocator = Allocator(GEOMETRY, end)
    if fits:
        assert allocator.take(n) == end
        return
    with pytest.raises(StorageError) as caught:
        allocator.take(n)
    assert caught.value.errno == errno.EFBIG
    assert (allocator.end_of_file, allocator.first_taken) == (end, None)
