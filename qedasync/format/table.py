"""Tables and slices of tables: u64 entries, little-endian on disk, ``array('Q')`` in memory.

An entry is a file offset, 0 (nothing here) or, in an L2 table only, 1 (reads as zeroes). Knows
neither where a table lies nor whose it is.
"""

from __future__ import annotations

import sys
from array import array
from functools import lru_cache
from typing import NamedTuple

from qedasync.format.geometry import ENTRY_BYTES, SLICE_BYTES, Geometry

__all__ = [
    "unpack_entries",
    "from_disk_order",
    "pack_entries",
    "sector_span",
    "zero_slice",
    "slice_is_sound",
    "SECTOR_ENTRIES",
]

SECTOR_ENTRIES = 64
"""Entries in 512 bytes, the least that is written of a table."""


def unpack_entries(data: bytes | bytearray | memoryview) -> array[int]:
    """The entries in ``data``, whose length is a multiple of 8. The array is a copy."""
    entries = array("Q")
    entries.frombytes(data)
    from_disk_order(entries)
    return entries


def from_disk_order(entries: array[int]) -> None:
    """Make the entries of an array right whose memory has been filled from disk."""
    if sys.byteorder == "big":
        entries.byteswap()


def pack_entries(entries: array[int], first: int = 0, n: int | None = None) -> bytes:
    """``n`` entries from number ``first`` on (to the end, if None) as they are on disk."""
    end = len(entries) if n is None else first + n
    assert 0 <= first <= end <= len(entries), (first, n, len(entries))
    part = entries[first:end]
    if sys.byteorder == "big":
        part.byteswap()
    return part.tobytes()


def sector_span(first: int, n: int) -> tuple[int, int]:
    """The entries to write when ``n`` (at least 1) from ``first`` on changed: 512-byte groups.

    Returns:
        the first entry and the number of entries, both multiples of ``SECTOR_ENTRIES``.
    """
    start = first - first % SECTOR_ENTRIES
    end = first + n
    return start, end + -end % SECTOR_ENTRIES - start


def zero_slice() -> array[int]:
    """A slice of an L2 table that maps nothing."""
    return array("Q", bytes(SLICE_BYTES))


# A slice is tested as one big integer whose 64-bit lanes are the entries: a dozen long-integer
# operations instead of 512 turns of a loop. As long as every lane is below 2**63, adding
# 2**63 - limit to each sets a lane's top bit exactly where it is >= limit, and never carries over.
_TOP = 1 << 63


class _Lanes(NamedTuple):
    """Constants with the same value in each of the lanes."""

    one: int
    top: int
    offset_in_cluster: int
    at_least_one: int
    at_least_first_cluster: int
    at_least_l1: int
    at_least_l1_end: int


@lru_cache(maxsize=64)
def _lanes(n_entries: int, geometry: Geometry) -> _Lanes:
    return _Lanes(
        one=_repeat(n_entries, 1),
        top=_repeat(n_entries, _TOP),
        offset_in_cluster=_repeat(n_entries, geometry.cluster_mask),
        at_least_one=_at_least(n_entries, 1),
        at_least_first_cluster=_at_least(n_entries, geometry.first_cluster_offset),
        at_least_l1=_at_least(n_entries, geometry.l1_table_offset),
        at_least_l1_end=_at_least(n_entries, geometry.l1_end),
    )


@lru_cache(maxsize=64)
def _at_least(n_entries: int, limit: int) -> int:
    """What to add to lanes below 2**63 so that those >= ``limit`` get their top bit set."""
    return _repeat(n_entries, max(_TOP - limit, 0))


def _repeat(n_entries: int, value: int) -> int:
    return int.from_bytes(value.to_bytes(ENTRY_BYTES, "little") * n_entries, "little")


def slice_is_sound(
    data: bytes | bytearray | memoryview, geometry: Geometry, end_of_file: int
) -> bool:
    """Whether every L2 entry in ``data`` is 0, 1 or a valid cluster offset.

    The same as :meth:`Geometry.check_cluster_offset` on each entry above 1, in about 15 µs a slice.
    ``end_of_file`` is below 2**63, as any file's.
    """
    raw = bytes(data)
    if raw == bytes(len(raw)):
        return True
    n_entries = len(raw) // ENTRY_BYTES
    lanes = _lanes(n_entries, geometry)
    value = int.from_bytes(raw, "little")
    if value & lanes.top:
        return False
    zero_clusters = value & lanes.offset_in_cluster
    if zero_clusters:
        if zero_clusters & ~lanes.one:
            return False  # an offset that is not a multiple of the cluster size
        value -= zero_clusters
        if value & ((zero_clusters << 64) - zero_clusters):
            return False  # bit 0 is set, but the lane is not 1
    # No offset is below 1, and at 0 an empty lane would count as past the end.
    return _lanes_in_range(value, lanes, _at_least(n_entries, max(end_of_file, 1)))


def _lanes_in_range(value: int, lanes: _Lanes, at_least_end: int) -> bool:
    """Whether each lane is 0 or a valid cluster offset, given it is aligned and below 2**63."""
    top = lanes.top
    return (
        not (value + at_least_end) & top
        and (value + lanes.at_least_one) & top == (value + lanes.at_least_first_cluster) & top
        and (value + lanes.at_least_l1) & top == (value + lanes.at_least_l1_end) & top
    )
