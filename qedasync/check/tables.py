"""The L2 tables that L1 names: which there are, which lie on one another, which hold nothing.

L1 may have two million entries, so what is asked of each of them is asked of a slice at a time, or
of all of them in order of their offsets.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import chain, compress, groupby, islice, repeat
from operator import sub

from qedasync.format.geometry import Geometry
from qedasync.storage.base import Storage

__all__ = ["TableList", "sort_offsets"]

_CHUNK = 1 << 15
_MOST_CROWDED = 1 << 17
_MOST_SHARED = 1 << 12
_MOST_FULL = 1 << 16
_ASK_FOR_HOLES_FROM = 1 << 10


def sort_offsets(offsets: array[int], part_size: int = _CHUNK) -> Iterator[None]:
    """Sort in place, a part at each step; a list of them all would be of 80 MiB.

    Offsets of clusters, up to 2**63, are exact as floats, which are compared in half the time.
    """
    parts: list[array[int]] = []
    while offsets:
        parts.append(array("Q", sorted(offsets[-part_size:], key=float)))
        del offsets[-part_size:]
        yield
    some = sorted(chain.from_iterable(part[:: len(parts)] for part in parts))
    borders = {part[-1] for part in parts}.union(some[:: max(1, part_size // max(1, len(parts)))])
    for border in sorted(borders):
        below: list[int] = []
        n_equal = 0  # there may be a million of them
        for part in parts:
            stop = bisect_left(part, border)
            end = bisect_right(part, border, stop)
            below += part[:stop]
            n_equal += end - stop
            del part[:end]
        below.sort(key=float)  # it finds the sorted runs and merges them
        offsets.extend(below)
        offsets.extend(repeat(border, n_equal))
        yield


class TableList:
    """The valid entries of L1, and what is known of the tables there.

    A table is *shared* if it has a cluster of the table of an earlier L1 entry. All others are
    *sound*. Where more tables lie on one another than any accident brings about, all tables of the
    image count as shared and nobody looks into them.

    Attributes:
        offsets: the valid entries in order of their size, as often as they are named.
        n_doubled: how many clusters more they name than there are.
        crowded: the offsets that lie on one another.
        is_hopeless: whether those are too many.
        sound: the L1 index and offset of each sound table that may hold something.
        shared: the first of the shared ones, in the same way.
        rescued: the L1 indices and offsets of the shared tables that a repair copies.
        n_sound, n_shared: how many there are.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.offsets = array("Q")
        self.n_doubled = 0
        self.crowded: set[int] = set()
        self.is_hopeless = False
        self.sound: tuple[array[int], array[int]] = (array("I"), array("Q"))
        self.shared: list[tuple[int, int]] = []
        self.rescued: dict[int, int] = {}
        self.n_sound = self.n_shared = 0
        self._geometry = geometry
        self._taken: set[int] = set()  # clusters of crowded tables seen so far
        self._seen: set[int] = set()  # crowded tables seen so far
        self._full: set[int] | None = None  # tables that may hold something, if that is known

    @property
    def n(self) -> int:
        """How many valid entries there are."""
        return len(self.offsets)

    # ------------------------------------------------------------- all at once

    def sort(self) -> Iterator[None]:
        """Find out which tables lie on one another; in steps, for there may be many."""
        yield from sort_offsets(self.offsets)
        length, bits = self._geometry.table_bytes, self._geometry.cluster_bits
        previous = -length
        for start in range(0, self.n, _CHUNK):
            part = self.offsets[start : start + _CHUNK]
            steps = list(map(sub, part, chain((previous,), part)))
            previous = part[-1]
            if min(steps) < length:
                near = [step for step in steps if step < length]
                self.n_doubled += (length * len(near) - sum(near)) >> bits
                if not self.is_hopeless:
                    self._add_crowded(part, steps)
            yield

    def _add_crowded(self, part: array[int], steps: list[int]) -> None:
        """Note both of each two tables that are nearer to each other than a table is long."""
        length = self._geometry.table_bytes
        for first in range(0, len(part), 1 << 12):
            some = slice(first, first + (1 << 12))
            if not any(steps[some]):
                self.crowded.add(part[first])
                continue
            is_near = list(map(length.__gt__, steps[some]))
            later = list(compress(part[some], is_near))
            self.crowded.update(later, map(sub, later, compress(steps[some], is_near)))
            if len(self.crowded) * self._geometry.table_size > _MOST_CROWDED:
                self.is_hopeless = True
                self.n_shared = self.n
                return

    async def find_full(self, storage: Storage) -> None:
        """If there are many tables, see which of them lie wholly in a hole.

        Raises:
            StorageError: the storage cannot say.
        """
        if self.n < _ASK_FOR_HOLES_FROM or self.is_hopeless:
            return
        offsets, full = self.offsets, set[int]()
        i, n = 0, len(offsets)
        while i < n and len(full) < _MOST_FULL:
            data = await storage.next_data(offsets[i])
            i = bisect_right(offsets, data - self._geometry.table_bytes, i)  # those end before it
            while i < n and offsets[i] <= data:
                full.add(offsets[i])
                i = bisect_right(offsets, offsets[i], i)
        if i >= n:
            self._full = full

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The clusters ``(first, n)`` of the tables, from ``start`` to ``stop``, more or less."""
        bits, size = self._geometry.cluster_bits, self._geometry.table_size
        first = n = 0
        i = bisect_left(self.offsets, (start - size) << bits if start > size else 0)
        for offset, _ in groupby(islice(self.offsets, i, None)):
            cluster = offset >> bits
            if cluster >= stop:
                break
            if cluster > first + n:
                yield first, n
                first, n = cluster, 0
            n = cluster + size - first
        if n:
            yield first, n

    # ---------------------------------------------------- in the order of L1

    def place(self, first: int, entries: array[int]) -> list[tuple[int, int]]:
        """Take the next slice of L1, 0 for invalid entries; answers the first shared ones in it."""
        crowded = self.crowded
        if self.is_hopeless or (self._full is not None and self._is_nothing(entries)):
            return []
        shared: list[tuple[int, int]] = []
        if crowded and not crowded.isdisjoint(entries):
            shared = self._part_shared(first, entries)
        full = self._full
        wanted = entries if full is None else list(map(full.__contains__, entries))
        indices, offsets = self.sound
        indices.extend(compress(range(first, first + len(entries)), wanted))
        offsets.extend(compress(entries, wanted))
        return shared

    def _is_nothing(self, entries: array[int]) -> bool:
        assert self._full is not None
        return self._full.isdisjoint(entries) and self.crowded.isdisjoint(entries)

    def _part_shared(self, first: int, entries: array[int]) -> list[tuple[int, int]]:
        """Take the shared ones out of ``entries``; all of them are counted, some are answered."""
        room = _MOST_SHARED - len(self.shared)
        found: list[int]
        if self._seen.issuperset(set(entries)):
            found = list(range(len(entries)))
        else:
            found = [i for i, e in enumerate(entries) if e in self.crowded and self._is_later(e)]
        shared = [(first + i, entries[i]) for i in found[:room]]
        self.shared += shared
        self.n_shared += len(found)
        if len(found) == len(entries):
            del entries[:]
        for i in found if entries else []:
            entries[i] = 0
        return shared

    def _is_later(self, offset: int) -> bool:
        """Whether a crowded table lies on an earlier one."""
        if offset in self._seen:
            return True
        self._seen.add(offset)
        geometry = self._geometry
        clusters = range(offset, offset + geometry.table_bytes, geometry.cluster_size)
        is_later = not self._taken.isdisjoint(clusters)
        self._taken.update(clusters)
        return is_later

    def end(self) -> None:
        """All of L1 has been placed."""
        self.n_sound = self.n - self.n_shared
        self._seen.clear()
        self._taken.clear()

    def forget(self) -> None:
        """Keep the numbers only: nobody walks through this image any more."""
        self.offsets = array("Q")
        self.sound = (array("I"), array("Q"))
        self.crowded = set()
        self._full = None

    def settle(self, index: int, copy: int) -> None:
        """A shared table has been copied, and is a table like any other."""
        old = self.rescued.pop(index)
        self.shared.remove((index, old))
        self.n_shared -= 1
        self.n_sound += 1
        self.sound[0].append(index)
        self.sound[1].append(copy)
        del self.offsets[bisect_left(self.offsets, old)]
        insort(self.offsets, copy)
