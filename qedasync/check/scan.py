"""Judges L2 entries: valid or not, in use already or not. Synchronous, a slice at a time.

A slice that is one run of clusters, as sequential writing makes them, is recognised as one big
integer whose lanes are the entries and marked as a run, some 5 µs for 512 entries; only others are
looked at one by one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat
from operator import add, ne

from qedasync.check.marks import Marks
from qedasync.events import Event
from qedasync.format.geometry import ENTRY_BYTES, SLICE_BYTES, SLICE_ENTRIES, Geometry
from qedasync.format.table import (
    SECTOR_ENTRIES,
    pack_entries,
    sector_span,
    slice_is_sound,
    unpack_entries,
)
from qedasync.storage.base import Write

__all__ = ["Scanner", "Trouble", "invalid_entries", "sector_writes"]

_ZERO = bytes(SLICE_BYTES)
_ALL_ZERO_CLUSTERS = (1).to_bytes(ENTRY_BYTES, "little") * SLICE_ENTRIES
_ONE = int.from_bytes(_ALL_ZERO_CLUSTERS, "little")
_COUNT = sum(i << (64 * i) for i in range(SLICE_ENTRIES))


@dataclass(slots=True)
class Trouble:
    """Entries that are wrong, by index.

    Attributes:
        invalid: they point to no data cluster.
        doubles: they point to a cluster that is in use already.
    """

    invalid: list[int] = field(default_factory=list)
    doubles: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.invalid or self.doubles)

    def extend(self, first: int, other: Trouble) -> None:
        """Take over the trouble of a slice that begins at index ``first``."""
        self.invalid += [first + i for i in other.invalid]
        self.doubles += [first + i for i in other.doubles]


def invalid_entries(raw: bytes, geometry: Geometry, end_of_file: int) -> list[int]:
    """The indices of the entries of a slice that are neither 0, 1 nor a valid cluster offset."""
    if slice_is_sound(raw, geometry, end_of_file):
        return []
    valid = geometry.check_cluster_offset
    entries = unpack_entries(raw)
    return [i for i, entry in enumerate(entries) if entry > 1 and not valid(entry, end_of_file)]


def sector_writes(
    table_offset: int, first: int, entries: array[int], changed: Iterable[int], event: Event
) -> list[Write]:
    """The writes, in whole sectors, that bring changed entries to disk.

    Args:
        first: the index in the table of ``entries[0]``, a multiple of a sector's entries.
        changed: indices in ``entries``.
    """
    writes = []
    for start in sorted({sector_span(index, 1)[0] for index in changed}):
        data = pack_entries(entries, start, SECTOR_ENTRIES)
        offset = table_offset + (first + start) * ENTRY_BYTES
        writes.append(Write(offset, [data], len(data), event))
    return writes


class Scanner:
    """Scans slices and marks the clusters that they name.

    Attributes:
        end_of_file: where the usable part of the file ends; may grow.
        allocated: entries that name a cluster, valid or not.
        fragmented: of those, the ones that do not follow the one before them in the same table.
        bad: of those, the ones that were answered as trouble.
    """

    def __init__(self, geometry: Geometry, end_of_file: int, marks: Marks) -> None:
        self.end_of_file = end_of_file
        self.allocated = 0
        self.fragmented = 0
        self.bad = 0
        self._geometry = geometry
        self._marks = marks
        self._steps = _COUNT << geometry.cluster_bits
        self._span = (SLICE_ENTRIES - 1) << geometry.cluster_bits
        self._expected = 0

    def start_table(self) -> None:
        """What comes next is of another table."""
        self._expected = 0

    def add_clusters(self, offset: int, n: int, end_of_file: int) -> None:
        """The file has grown: ``n`` clusters at ``offset`` are in use from now on."""
        self._marks.mark_run(offset >> self._geometry.cluster_bits, n)
        self.end_of_file = end_of_file

    def scan(self, raw: bytes) -> Trouble | None:
        """Judge and mark a slice as it is on disk."""
        if raw in (_ZERO, _ALL_ZERO_CLUSTERS):
            return None
        first = int.from_bytes(raw[:ENTRY_BYTES], "little")
        last = int.from_bytes(raw[-ENTRY_BYTES:], "little")
        if last - first == self._span and self._is_run(raw, first, last):
            trouble = self._scan_run(first)
        else:
            trouble = self._scan_entries(raw)
        self.bad += len(trouble.invalid) + len(trouble.doubles)
        return trouble if trouble else None

    def _is_run(self, raw: bytes, first: int, last: int) -> bool:
        geometry, end = self._geometry, self.end_of_file
        return (
            geometry.check_cluster_offset(first, end)
            and geometry.check_cluster_offset(last, end)
            and not first < geometry.l1_table_offset < last
            and int.from_bytes(raw, "little") == _ONE * first + self._steps
        )

    def _scan_run(self, first: int) -> Trouble:
        if self._expected not in (0, first):
            self.fragmented += 1
        self.allocated += SLICE_ENTRIES
        self._expected = first + (SLICE_ENTRIES << self._geometry.cluster_bits)
        start = first >> self._geometry.cluster_bits
        doubles = self._marks.mark_run(start, SLICE_ENTRIES)
        return Trouble(doubles=[cluster - start for cluster in doubles])

    def _scan_entries(self, raw: bytes) -> Trouble:
        entries = unpack_entries(raw)
        self._count(entries)
        invalid = invalid_entries(raw, self._geometry, self.end_of_file)
        for i in invalid:
            entries[i] = 0
        return Trouble(invalid, self._marks.mark_each(entries, self._geometry.cluster_bits))

    def _count(self, entries: array[int]) -> None:
        used = [entry for entry in entries if entry > 1]
        if used:
            self.allocated += len(used)
            step = self._geometry.cluster_size
            self.fragmented += sum(map(ne, used[1:], map(add, used, repeat(step))))
            self.fragmented += self._expected not in (0, used[0])
            self._expected = used[-1] + step
