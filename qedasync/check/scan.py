"""Judges L2 entries: valid or not, in use already or not. Synchronous, a slice at a time.

A run of clusters, as sequential writing makes them, is compared with what it would look like, a
whole table in some 50 µs, and marked as a run. Other slices are judged as big integers; only their
marks are set one by one. A first :meth:`Scanner.glance` does without judging.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from operator import add, ne, sub

from qedasync.check.lanes import (
    Judge,
    as_bytes,
    as_lanes,
    count_breaks,
    indices_of,
    is_full,
    without,
)
from qedasync.check.marks import Flags, Marks
from qedasync.check.numbers import count_number_breaks, from_lanes, lanes_in, to_lanes
from qedasync.events import Event
from qedasync.format.geometry import ENTRY_BYTES, SLICE_BYTES, SLICE_ENTRIES, Geometry
from qedasync.format.pattern import RunPattern
from qedasync.format.table import SECTOR_ENTRIES, pack_entries, unpack_entries
from qedasync.storage.base import Write

__all__ = ["Scanner", "Trouble", "sector_writes", "ALL_ZERO_CLUSTERS"]

_ZERO = bytes(SLICE_BYTES)
ALL_ZERO_CLUSTERS = (1).to_bytes(ENTRY_BYTES, "little") * SLICE_ENTRIES
"""A slice of entries that are all 1."""

_ALL_ONE = as_lanes(ALL_ZERO_CLUSTERS)


@dataclass(slots=True)
class Trouble:
    """Entries that are wrong.

    Attributes:
        wrong: those that point to no data cluster: where a slice begins, and its lanes.
        doubles: indices of those that point to a cluster that is in use already.
    """

    wrong: list[tuple[int, int]] = field(default_factory=list)
    doubles: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.wrong or self.doubles)

    @property
    def n_invalid(self) -> int:
        """How many entries point to no data cluster."""
        return sum(lanes.bit_count() for _, lanes in self.wrong)

    def invalid(self) -> Iterator[int]:
        """Their indices: there may be millions, and few are told."""
        for first, lanes in self.wrong:
            for index in indices_of(lanes):
                yield first + index

    def extend(self, first: int, other: Trouble) -> None:
        """Take over the trouble of a slice that begins at index ``first``."""
        self.wrong += [(first + start, lanes) for start, lanes in other.wrong]
        self.doubles += [first + i for i in other.doubles]


def sector_writes(
    table_offset: int, first: int, entries: array[int], changed: Iterable[int], event: Event
) -> list[Write]:
    """The writes, in whole sectors, that bring changed entries to disk.

    Args:
        first: the index in the table of ``entries[0]``, a multiple of a sector's entries.
        changed: indices in ``entries``.
    """
    writes = []
    for start in sorted({index - index % SECTOR_ENTRIES for index in changed}):
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

    def __init__(self, geometry: Geometry, end_of_file: int, marks: Marks | Flags) -> None:
        self.end_of_file = end_of_file
        self.allocated = 0
        self.fragmented = 0
        self.bad = 0
        self._geometry = geometry
        self._marks = marks
        self._judge: Judge | None = None
        self._runs = RunPattern(geometry.cluster_bits)
        self._expected = 0

    def start_table(self) -> None:
        """What comes next is of another table."""
        self._expected = 0

    def add_clusters(self, offset: int, n: int, end_of_file: int) -> None:
        """The file has grown: ``n`` clusters at ``offset`` are in use from now on."""
        self._marks.mark_run(offset >> self._geometry.cluster_bits, n)
        self.end_of_file = end_of_file
        self._judge = None

    def run_in(self, raw: bytes | memoryview) -> int:
        """The first of the clusters that follow each other in all of ``raw``; 0 if it is no run."""
        geometry, end = self._geometry, self.end_of_file
        first = int.from_bytes(raw[:ENTRY_BYTES], "little")
        last = int.from_bytes(raw[-ENTRY_BYTES:], "little")
        is_run = (
            last - first == (len(raw) // ENTRY_BYTES - 1) << geometry.cluster_bits
            and geometry.check_cluster_offset(first, end)
            and geometry.check_cluster_offset(last, end)
            and not first < geometry.l1_table_offset < last
            and self._runs.is_run(raw, first)
        )
        return first if is_run else 0

    def scan_run(self, first: int, n: int) -> Trouble:
        """Mark a run of ``n`` entries, which :meth:`run_in` found."""
        if self._expected not in (0, first):
            self.fragmented += 1
        self.allocated += n
        self._expected = first + (n << self._geometry.cluster_bits)
        start = first >> self._geometry.cluster_bits
        doubles = self._marks.mark_run(start, n)
        self.bad += len(doubles)
        return Trouble(doubles=[cluster - start for cluster in doubles])

    def scan(self, raw: bytes) -> Trouble | None:
        """Judge and mark a slice as it is on disk."""
        if raw in (_ZERO, ALL_ZERO_CLUSTERS):
            return None
        first = self.run_in(raw)
        if first:
            trouble = self.scan_run(first, SLICE_ENTRIES)
        else:
            trouble = self._scan_entries(raw)
            self.bad += trouble.n_invalid + len(trouble.doubles)
        return trouble if trouble else None

    def glance(self, piece: memoryview) -> bool:
        """Mark a piece of whole slices, and see neither what is wrong nor what was marked already.

        The marks must be :class:`~qedasync.check.marks.Flags`.

        Returns:
            False if something is wrong for sure; the rest of the piece is then left out.
        """
        first = self.run_in(piece)
        if first:
            return not self.scan_run(first, len(piece) // ENTRY_BYTES)
        slices = [piece[at : at + SLICE_BYTES] for at in range(0, len(piece), SLICE_BYTES)]
        if not self._may_hold_runs(piece):
            return self._glance_at_numbers(piece, slices)
        for raw in slices:
            first = self.run_in(raw)
            trouble = first and self.scan_run(first, SLICE_ENTRIES)
            if trouble or not (first or self._glance_at_numbers(raw, [raw])):
                return False
        return True

    def _may_hold_runs(self, piece: memoryview) -> bool:
        """Whether a slice of it ends as far behind its beginning as a run does."""
        entries = unpack_entries(piece)
        span = (SLICE_ENTRIES - 1) << self._geometry.cluster_bits
        steps = map(sub, entries[SLICE_ENTRIES - 1 :: SLICE_ENTRIES], entries[::SLICE_ENTRIES])
        return span in steps

    def _glance_at_numbers(self, piece: memoryview, slices: list[memoryview]) -> bool:
        bits, n = self._geometry.cluster_bits, len(piece) // ENTRY_BYTES
        lanes = lanes_in(piece, bits)
        if lanes is None:  # clusters marked as zeroes, to begin with
            return all(self.scan(bytes(raw)) is None for raw in slices)
        if not lanes:
            return True
        numbers = from_lanes(lanes, n)
        assert isinstance(self._marks, Flags)
        try:
            has_zero = self._marks.mark_blindly(numbers)
        except IndexError:
            return False
        if has_zero:
            numbers = array("i", filter(None, numbers))
            lanes = to_lanes(numbers)
        self.allocated += len(numbers)
        self.fragmented += count_number_breaks(lanes, len(numbers))
        self.fragmented += self._expected not in (0, numbers[0] << bits)
        self._expected = (numbers[-1] + 1) << bits
        return True

    def wrong(self, lanes: int) -> int:
        """The entries of a slice that are neither 0, 1 nor a valid cluster offset, as lanes."""
        if self._judge is None:
            self._judge = Judge(self._geometry, self.end_of_file, tables=False)
        return self._judge.wrong(lanes)

    def _scan_entries(self, raw: bytes) -> Trouble:
        lanes = as_lanes(raw)
        if is_full(lanes):
            self._count_full(lanes, raw)
        else:
            self._count(unpack_entries(raw))
        wrong = self.wrong(lanes)
        offsets = without(lanes, wrong) & ~_ALL_ONE  # valid ones, and 0
        doubles: list[int] = []
        if offsets:
            numbers = unpack_entries(as_bytes(offsets >> self._geometry.cluster_bits))
            doubles = self._marks.mark_each(numbers)
        return Trouble([(0, wrong)] if wrong else [], doubles)

    def _count_full(self, lanes: int, raw: bytes) -> None:
        """Count the entries of a slice that all name clusters, or what is to be one."""
        first = int.from_bytes(raw[:ENTRY_BYTES], "little")
        last = int.from_bytes(raw[-ENTRY_BYTES:], "little")
        self.allocated += SLICE_ENTRIES
        self.fragmented += count_breaks(lanes, self._geometry.cluster_size)
        self.fragmented += self._expected not in (0, first)
        self._expected = last + self._geometry.cluster_size

    def _count(self, entries: array[int]) -> None:
        used = [entry for entry in entries if entry > 1]
        if used:
            self.allocated += len(used)
            step = self._geometry.cluster_size
            self.fragmented += sum(map(ne, used[1:], map(add, used, repeat(step))))
            self.fragmented += self._expected not in (0, used[0])
            self._expected = used[-1] + step
