"""What is at a guest position: the lookup, one synchronous function over plain tables.

It never waits. When it needs a slice of an L2 table that is not there, it says which; the caller
loads that and asks again. So between two awaits of the engine a lookup and what follows are atomic.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from qedasync.errors import CorruptTable
from qedasync.format.geometry import SLICE_ENTRIES, Geometry
from qedasync.format.pattern import RunPattern
from qedasync.format.table import pack_entries

__all__ = [
    "lookup",
    "Lookup",
    "NeedSlice",
    "ClusterKind",
    "count_contiguous_clusters",
    "is_one_run",
    "slice_runs",
    "add_runs",
]


class ClusterKind(IntEnum):
    """What a lookup found; qed.h's QED_CLUSTER_* values."""

    FOUND = 0
    """Data clusters in this file."""
    ZERO = 1
    """Reads as zeroes and hides the backing file."""
    L2 = 2
    """Unallocated: there is an L2 table, its entries are 0."""
    L1 = 3
    """Unallocated: there is no L2 table."""


# Looking a member up in an enum costs four times a global, and a lookup is on every path.
_FOUND, _ZERO, _L2, _L1 = ClusterKind

_MANY = 16  # entries that are sooner counted by the array itself than looked at one by one


class Lookup(NamedTuple):
    """What is at a position, and how far that reaches.

    Attributes:
        kind: the same for the whole run.
        length: bytes from the position on, at least 1; cut at the request and the slice's end.
        offset: file offset of the position itself for FOUND (the run is contiguous), else 0.
    """

    kind: ClusterKind
    length: int
    offset: int


class NeedSlice(NamedTuple):
    """The lookup needs a slice that is not in the mapping: load it, then look up again.

    Attributes:
        slice_number: its key in the mapping.
        file_offset: where its 4 KiB lie in the image file.
    """

    slice_number: int
    file_offset: int


def count_contiguous_clusters(entries: Sequence[int], index: int, n: int, cluster_size: int) -> int:
    """How many of ``n`` (at least 1) entries from ``index`` on form one run; stops at the end.

    A run is all 0, all 1, or each entry one cluster past the one before.

    Source: qemu 7.2 block/qed-cluster.c: qed_count_contiguous_clusters.
    """
    expected = entries[index]
    step = cluster_size if expected > 1 else 0
    end = min(index + n, len(entries))
    if not step and n > _MANY and entries[index:end].count(expected) == end - index:
        return end - index
    for i in range(index + 1, end):
        expected += step
        if entries[i] != expected:
            return i - index
    return end - index


def is_one_run(entries: array[int], cluster_size: int, pattern: RunPattern) -> bool:
    """Whether all entries, at least one, are 0, or 1, or each one cluster past the one before."""
    head, n = entries[0], len(entries)
    if head <= 1:
        return entries.count(head) == n
    if head % cluster_size or entries[-1] != head + (n - 1) * cluster_size:
        return False
    return pattern.is_run(pack_entries(entries), head)


def slice_runs(
    entries: array[int], first: int, end: int, cluster_size: int, pattern: RunPattern
) -> list[tuple[int, int]]:
    """All runs of the entries ``[first, end)`` of a slice, as in :func:`count_contiguous_clusters`.

    Args:
        pattern: of runs of such clusters.

    Returns:
        for each run its first entry and how many there are.
    """
    part = entries[first:end]
    if is_one_run(part, cluster_size, pattern):
        return [(part[0], len(part))]
    runs = []
    begin, head, expected = 0, part[0], part[0]
    for i, entry in enumerate(part):
        if entry != expected:
            runs.append((head, i - begin))
            begin, head = i, entry
        expected = entry + cluster_size if entry > 1 else entry
    runs.append((head, len(part) - begin))
    return runs


def add_runs(runs: list[tuple[int, int]], more: list[tuple[int, int]], cluster_size: int) -> None:
    """Put the runs of the next slice behind ``runs``, which may go on in it."""
    if runs and more:
        (head, n), (entry, n_more) = runs[-1], more[0]
        if entry == (head + n * cluster_size if head > 1 else head):
            runs[-1] = (head, n + n_more)
            more = more[1:]
    runs += more


def lookup(
    geometry: Geometry,
    l1: Sequence[int],
    slices: Mapping[int, array[int]],
    pos: int,
    length: int,
    end_of_file: int,
) -> Lookup | NeedSlice:
    """What is at ``pos``, of the next ``length`` (at least 1) bytes.

    Args:
        l1: the L1 entries; those past its end count as 0.
        slices: the slices at hand by slice number. One that is there vouches for its L1 entry,
            which was checked before the slice was asked for.
        end_of_file: bytes of the file that may be used, a multiple of the cluster size.

    Returns:
        the kind and length of the run at ``pos``, or the slice that is missing.

    Raises:
        CorruptTable: the entry ``pos`` depends on is invalid.

    Source: qemu 7.2 block/qed-cluster.c: qed_find_cluster.
    """
    l1_index = pos >> geometry.l1_shift
    table_offset = l1[l1_index] if l1_index < len(l1) else 0
    if table_offset == 0:
        span = 1 << geometry.l1_shift
        return Lookup(_L1, min(length, span - (pos & (span - 1))), 0)
    entries = slices.get(pos >> geometry.slice_shift)
    if entries is None:
        return _need_slice(geometry, table_offset, pos, end_of_file)

    start = pos & geometry.cluster_mask
    index = (pos >> geometry.cluster_bits) & (SLICE_ENTRIES - 1)
    n = (start + length + geometry.cluster_mask) >> geometry.cluster_bits
    entry = entries[index]
    if n > 1:
        n = count_contiguous_clusters(entries, index, n, geometry.cluster_size)
    if entry > 1:
        n = _valid_clusters(geometry, entry, n, pos, end_of_file)
    # Differs from QEMU: unbounded integers, for 32 bits lose runs of 4 GiB and more.
    length = min(length, (n << geometry.cluster_bits) - start)
    if entry > 1:
        return Lookup(_FOUND, length, entry + start)
    return Lookup(_ZERO if entry else _L2, length, 0)


def _need_slice(geometry: Geometry, table_offset: int, pos: int, end_of_file: int) -> NeedSlice:
    if not geometry.check_table_offset(table_offset, end_of_file):
        index = geometry.l1_index(pos)
        raise CorruptTable(
            f"L1 entry {index} is {table_offset:#x}; an L2 table must be"
            f" {_rule(geometry, geometry.table_bytes, end_of_file)}."
            " Checking the image with repair drops such entries.",
            level=1,
            index=index,
            value=table_offset,
            pos=pos,
        )
    return NeedSlice(geometry.slice_of(pos), geometry.slice_file_offset(table_offset, pos))


def _valid_clusters(geometry: Geometry, entry: int, n: int, pos: int, end_of_file: int) -> int:
    """How many of the ``n`` contiguous clusters from ``entry`` on are valid; the first has to be.

    Differs from QEMU, which checks the first only and then writes the guest's data past the end of
    the file, where the next allocation overwrites it. Cutting the run keeps what is good readable.
    """
    if not geometry.check_cluster_offset(entry, end_of_file):
        index = geometry.l2_index(pos)
        raise CorruptTable(
            f"L2 entry {index} of the table for position {pos} is {entry:#x};"
            f" a data cluster must be {_rule(geometry, geometry.cluster_size, end_of_file)}."
            " Checking the image with repair drops such entries.",
            level=2,
            index=index,
            value=entry,
            pos=pos,
        )
    if n == 1:
        return 1
    limit = end_of_file
    if entry < geometry.l1_table_offset < limit:
        limit = geometry.l1_table_offset
    return min(n, (limit - entry) >> geometry.cluster_bits)


def _rule(geometry: Geometry, size: int, end_of_file: int) -> str:
    return (
        f"a multiple of {geometry.cluster_size}, from {geometry.first_cluster_offset:#x}"
        f" to {max(end_of_file - size, 0):#x} and outside the L1 table at"
        f" {geometry.l1_table_offset:#x}..{geometry.l1_end:#x}"
    )
