"""L1 and the cached slices of the L2 tables: what is where, as of now.

The lookup is synchronous. Only a slice that is not here makes a request wait, and one load serves
everybody who waits for it. Nothing here changes before it is on disk: a committer writes first and
then calls :meth:`Tables.publish`.

The race to keep in mind: a load on a thread may read a slice just before a commit writes it. So
``publish`` and ``forget`` mark a load in flight as stale, and the loader reads again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qedasync.engine.allocator import Allocator
from qedasync.engine.l2_cache import L2Cache
from qedasync.engine.overlaps import TableMap
from qedasync.engine.stats import Stats
from qedasync.errors import CorruptTable
from qedasync.events import Event
from qedasync.format.cluster import ClusterKind, Lookup, NeedSlice, is_one_run, lookup
from qedasync.format.geometry import ENTRY_BYTES, SLICE_BYTES, SLICE_ENTRIES, Geometry
from qedasync.format.pattern import RunPattern
from qedasync.format.table import (
    pack_entries,
    slice_is_sound,
    unpack_entries,
)
from qedasync.storage.base import Storage

if TYPE_CHECKING:
    import asyncio

    from qedasync.engine.tasks import TaskOwner

__all__ = ["SliceUpdates", "Tables", "LOOKUPS_PER_TURN"]

LOOKUPS_PER_TURN = 100
"""How many look-ups whoever walks through an image makes before the loop gets a turn."""

SliceUpdates = Mapping[int, Mapping[int, int]]
"""New entries: slice number → index in the slice → entry."""

_READ_AHEAD_SLICES = 32
_FOUND = ClusterKind.FOUND


class _Load:
    """A slice on its way from disk."""

    __slots__ = ("stale", "task")

    def __init__(self) -> None:
        self.stale = False
        self.task: asyncio.Task[None] | None = None


class Tables:
    """The mapping of one image.

    Attributes:
        l1: the entries in use, as on disk (see :func:`load_l1`).
        cache: the slices.
        pattern: of runs of clusters.
    """

    def __init__(
        self,
        storage: Storage,
        geometry: Geometry,
        l1: array[int],
        cache: L2Cache,
        allocator: Allocator,
        tasks: TaskOwner | None,
        stats: Stats,
        *,
        guard: bool,
    ) -> None:
        """
        Args:
            tasks: for loads that several wait for; None if only one coroutine is at work, which
                then needs no event loop for them.
            guard: whether to find out data that lies on top of an L2 table (to be written).
        """
        self.geometry = geometry
        self.l1 = l1
        self.cache = cache
        self.pattern = RunPattern(geometry.cluster_bits)
        self._storage = storage
        self._allocator = allocator
        self._tasks = tasks
        self._stats = stats
        self._guard = guard
        self._loading: dict[int, _Load] = {}
        self._held: Mapping[int, array[int]] = {}
        self._table_map: TableMap | None = None  # made when it is needed
        self._own_tables: set[int] = set()  # L1 indices whose table nobody else names
        self._new_tables: set[int] = set()  # L1 indices whose table we have made
        self._written: set[int] = set()  # slices that a commit has changed
        self._last_loaded = -2
        self._ahead = 1

    # ---------------------------------------------------------------- lookups

    def lookup(self, pos: int, length: int) -> Lookup | NeedSlice:
        """What is at ``pos``; loads the slice if that cannot block.

        Raises:
            CorruptTable: the entry is invalid.
        """
        end = self._limit(pos >> self.geometry.slice_shift)
        found = lookup(self.geometry, self.l1, self.cache, pos, length, end)
        if type(found) is NeedSlice and self._load_now(found):
            found = lookup(self.geometry, self.l1, self.cache, pos, length, end)
        if self.cache.suspect and type(found) is Lookup and found.kind is _FOUND:
            self._check_overlap(found, pos)
        return found

    async def find_cluster(self, pos: int, length: int) -> Lookup:
        """What is at ``pos``, and how far that reaches within its slice.

        Raises:
            CorruptTable: the entry is invalid.
            StorageError: the slice cannot be read.

        Locks: none. Cancellation: at once; a load goes on for others.
        Source: qemu 7.2 block/qed-cluster.c: qed_find_cluster.
        """
        while type(found := self.lookup(pos, length)) is NeedSlice:
            await self._load(found)
        assert type(found) is Lookup
        return found

    def find_mapped(self, pos: int, length: int) -> int:
        """The file offset of ``[pos, pos + length)`` if one cluster at hand has it all, else 0."""
        geometry = self.geometry
        entries = self.cache.young.get(pos >> geometry.slice_shift)
        if entries is None:
            return 0
        entry = entries[(pos >> geometry.cluster_bits) & (SLICE_ENTRIES - 1)]
        inside = pos & geometry.cluster_mask
        if entry > 1 and inside + length <= geometry.cluster_size:
            return entry + inside
        return 0

    def is_free(self, pos: int, length: int) -> bool:
        """Whether ``[pos, pos + length)`` is in one cluster at hand that holds no data."""
        geometry = self.geometry
        entries = self.cache.young.get(pos >> geometry.slice_shift)
        return (
            entries is not None
            and entries[(pos >> geometry.cluster_bits) & (SLICE_ENTRIES - 1)] <= 1
            and (pos & geometry.cluster_mask) + length <= geometry.cluster_size
        )

    def sound_slice(self, pos: int) -> array[int] | None:
        """The slice of ``pos``, not to be changed, if it is at hand and every entry may be used."""
        number = pos >> self.geometry.slice_shift
        if self.cache.suspect:
            return None
        if number not in self.cache and self.table_offset(pos):
            self.lookup(pos, 1)
        return self.cache.young.get(number)

    def run_ahead(self, pos: int, end: int) -> tuple[int, int] | None:
        """A run of clusters that fills the next slices, which are not at hand and are not kept.

        For whoever goes through an image: a table that is one run is known at the speed of memory.

        Returns:
            where it is in the file, and its bytes; None if that is not seen at once.

        Raises:
            CorruptTable: the L1 entry is invalid.
        """
        data = self._read_slices(pos, end)
        if data is None:
            return None
        length = len(data) // SLICE_BYTES << self.geometry.slice_shift
        first = int.from_bytes(data[:ENTRY_BYTES], "little")
        clusters = range(first, first + length, self.geometry.cluster_size)
        limit = self._allocator.first_taken or self._allocator.end_of_file
        is_run = self._is_sound_run(first, clusters[-1], limit) and self.pattern.is_run(data, first)
        return (first, length) if is_run and not self._overlaps(clusters) else None

    def _read_slices(self, pos: int, end: int) -> bytearray | None:
        """The slices from ``pos`` to ``end`` as on disk, as far as one table has them.

        None if there are not two that can be had at once, or somebody knows better.
        """
        geometry, number = self.geometry, pos >> self.geometry.slice_shift
        left = geometry.slices_per_table - number % geometry.slices_per_table
        count = min(left, (end - pos) >> geometry.slice_shift)
        is_whole = count > 1 and pos == number << geometry.slice_shift
        if not is_whole or number in self.cache or self._held or not self.table_offset(pos):
            return None
        need = lookup(geometry, self.l1, {}, pos, 1, self._limit(number))
        assert type(need) is NeedSlice
        data = bytearray(count * SLICE_BYTES)
        if not self._storage.try_read_into([data], need.file_offset, Event.L2_LOAD):
            return None
        self._stats.l2_loads += count
        return data

    def table_offset(self, pos: int) -> int:
        """The L1 entry for ``pos``; 0 if there is no L2 table."""
        index = pos >> self.geometry.l1_shift
        return self.l1[index] if index < len(self.l1) else 0

    async def slice_entries(self, number: int) -> array[int]:
        """A slice as on disk, not to be changed; all 0 where there is no L2 table.

        Raises:
            CorruptTable: the L1 entry is invalid. The slice's own entries are not looked at.
            StorageError: the slice cannot be read.
        """
        pos = number << self.geometry.slice_shift
        if self.table_offset(pos) == 0:
            return array("Q", bytes(SLICE_BYTES))
        need = lookup(self.geometry, self.l1, {}, pos, 1, self._limit(number))
        assert type(need) is NeedSlice
        while (entries := self.cache.get(number)) is None:
            if not self._load_now(need):
                await self._load(need)
        return entries

    async def end_of_empty(self, pos: int) -> int:
        """How far the L2 table is a hole in the file from the slice on that begins at ``pos``.

        Answers ``pos`` itself if there is no hole, or no such slice in the table before.

        Raises:
            StorageError: the storage cannot say.
        """
        geometry = self.geometry
        left = -geometry.slice_of(pos) % geometry.slices_per_table
        if not left:
            return pos
        start = geometry.slice_file_offset(self.table_offset(pos), pos)
        n = (await self._storage.next_data(start) - start) // SLICE_BYTES
        return pos + (min(n, left) << geometry.slice_shift)

    async def end_of_empty_tables(self, index: int) -> int:
        """The next L1 index from ``index`` on that may lead to a table with anything in it.

        Looks one slice of L1 ahead: which of its tables are in the same hole in the file.

        Raises:
            StorageError: the storage cannot say.
        """
        geometry, part = self.geometry, slice(index, index + SLICE_ENTRIES)
        start = min(filter(None, self.l1[part]), default=0)
        hole_end = await self._storage.next_data(start) if start else 0
        on_l1 = start < geometry.l1_end and hole_end > geometry.l1_table_offset
        if on_l1 or start < geometry.first_cluster_offset:
            return index
        end = min(hole_end, self._allocator.first_taken or self._allocator.end_of_file)
        last = end - geometry.table_bytes
        for entry in self.l1[part]:
            if entry and (entry & geometry.cluster_mask or not start <= entry <= last):
                break
            index += 1
        return index

    # ------------------------------------------------------------------ loads

    def _load_now(self, need: NeedSlice) -> bool:
        if need.slice_number in self._loading:
            return False
        number, count = need.slice_number, self._read_ahead(need.slice_number)
        data = bytearray(count * SLICE_BYTES)
        if not self._storage.try_read_into([data], need.file_offset, Event.L2_LOAD):
            if count == 1:
                return False
            count, data = 1, bytearray(SLICE_BYTES)
            if not self._storage.try_read_into([data], need.file_offset, Event.L2_LOAD):
                return False
        self._keep(number, data, count)
        return True

    def _read_ahead(self, number: int) -> int:
        """How many slices to read from ``number`` on: more, the longer access is sequential."""
        sequential = number == self._last_loaded + 1
        self._ahead = min(self._ahead * 2, _READ_AHEAD_SLICES) if sequential else 1
        in_table = self.geometry.slices_per_table
        count = min(self._ahead, in_table - number % in_table)
        for following in range(number + 1, number + count):
            if following in self.cache or following in self._loading:
                count = following - number
                break
        return count

    def _keep(self, number: int, data: bytearray, count: int) -> None:
        view = memoryview(data)
        for i in range(count):
            raw = bytes(view[i * SLICE_BYTES : (i + 1) * SLICE_BYTES])
            held = self._held.get(number + i)
            if held is not None:
                raw = pack_entries(held)
            entries = unpack_entries(raw)
            sound = self._is_sound(raw, entries, self._limit(number + i))
            sound = sound and not self._overlaps(entries)
            self.cache.put(number + i, entries, sound=sound)
        self._stats.l2_loads += count
        self._last_loaded = number + count - 1

    def _is_sound(self, raw: bytes, entries: array[int], end_of_file: int) -> bool:
        """As :func:`slice_is_sound`; of one run, the ends tell."""
        if entries[0] > 1 and is_one_run(entries, self.geometry.cluster_size, self.pattern):
            return self._is_sound_run(entries[0], entries[-1], end_of_file)
        return slice_is_sound(raw, self.geometry, end_of_file)

    def _is_sound_run(self, first: int, last: int, end_of_file: int) -> bool:
        """Whether all clusters from ``first`` to ``last`` are where data can be."""
        return (
            self.geometry.check_cluster_offset(first, end_of_file)
            and self.geometry.check_cluster_offset(last, end_of_file)
            and not first <= self.geometry.l1_table_offset <= last
        )

    async def _load(self, need: NeedSlice) -> None:
        """Wait for the one load of this slice, starting it if nobody has."""
        load = self._loading.get(need.slice_number)
        if load is None:
            load = self._loading[need.slice_number] = _Load()
            if self._tasks is None:
                await self._run_load(need, load)
                return
            load.task = self._tasks.start(self._run_load(need, load), "L2 load")
        assert self._tasks is not None
        assert load.task is not None
        await self._tasks.share(load.task)

    async def _run_load(self, need: NeedSlice, load: _Load) -> None:
        try:
            while True:
                load.stale = False
                data = bytearray(SLICE_BYTES)
                await self._storage.read_into([data], need.file_offset, Event.L2_LOAD)
                if not load.stale:
                    self._keep(need.slice_number, data, 1)
                    return
        finally:
            del self._loading[need.slice_number]

    # ---------------------------------------------------------------- changes

    @contextmanager
    def hold(self, slices: Mapping[int, array[int]]) -> Iterator[None]:
        """Whoever loads one of ``slices`` gets these entries, whatever is on disk by now.

        For the time in which a commit writes them: a write that found a new entry before it is
        published would go in place, and be lost if the commit fails and puts the old one back.
        """
        self._held = slices
        self._written.update(slices)
        try:
            yield
        finally:
            self._held = {}

    def publish(self, updates: SliceUpdates, new_tables: Mapping[int, int]) -> None:
        """Take over what is on disk now: new entries, and new L2 tables by L1 index."""
        for index, offset in new_tables.items():
            self.l1[index] = offset
            self._own_tables.add(index)
            self._new_tables.add(index)
            if self._table_map is not None:
                self._table_map.add(offset)
        for number, entries in updates.items():
            cached = self.cache.get(number)
            if cached is not None:
                for index, entry in entries.items():
                    cached[index] = entry
            self._mark_stale(number)

    def forget(self, numbers: Iterable[int]) -> None:
        """Drop slices whose content on disk has been in doubt; they are loaded when needed."""
        for number in numbers:
            self.cache.discard(number)
            self._mark_stale(number)

    def extend(self, l1: array[int]) -> None:
        """Take a longer L1, for a larger image.

        Locks: the caller holds the allocating turn.
        """
        self.l1 = l1
        self.forget([*self.cache, *self._loading])
        self._table_map = None
        self._own_tables.clear()

    async def loads_ended(self) -> None:
        """Wait until no slice is on its way from disk; those who wanted it may be gone long since.

        Cancellation: at once.
        """
        while loads := [load.task for load in self._loading.values() if load.task is not None]:
            assert self._tasks is not None
            await self._tasks.ended(loads)

    def reset(self, l1: array[int]) -> None:
        """Start over with another L1 and no slices, after a repair: every entry is believed anew.

        Locks: the caller holds the allocating turn.
        """
        self.extend(l1)
        self._new_tables.clear()
        self._written.clear()
        self._allocator.first_taken = None

    def _mark_stale(self, number: int) -> None:
        load = self._loading.get(number)
        if load is not None:
            load.stale = True

    # ------------------------------------------------------- hostile mappings

    def _limit(self, number: int) -> int:
        """Below which offset the entries of a slice, and its table, must lie.

        Differs from QEMU: an entry that was past the end of the file stays invalid when the file
        grows. It would name a cluster that has been handed out to another part of the disk.
        """
        allocator = self._allocator
        if (
            allocator.first_taken is None
            or number in self._written
            or number // self.geometry.slices_per_table in self._new_tables
        ):
            return allocator.end_of_file
        return allocator.first_taken

    def check_nothing_lost(self, number: int, entries: array[int]) -> None:
        """Refuse to change a slice that has entries past the end of the file.

        From then on they could not be told from the entries of new clusters.

        Raises:
            CorruptTable: the slice has such an entry.
        """
        if number not in self.cache.suspect or number in self._written:
            return
        limit = self._limit(number)
        for i, entry in enumerate(entries):
            if entry >= limit:
                pos = (number << self.geometry.slice_shift) + (i << self.geometry.cluster_bits)
                index = self.geometry.l2_index(pos)
                raise CorruptTable(
                    f"L2 entry {index} of the table for position {pos} is {entry:#x}, past the end"
                    f" of the file ({limit:#x}), so nothing new can be mapped next to it."
                    " Check the image with repair first.",
                    level=2,
                    index=index,
                    value=entry,
                    pos=pos,
                )

    def check_own_table(self, pos: int) -> None:
        """Refuse to change a table that a second L1 entry names too, or that overlaps another.

        Differs from QEMU, which writes on and so changes another part of the disk as well.

        Raises:
            CorruptTable: the L2 table for ``pos`` is shared.
        """
        index = pos >> self.geometry.l1_shift
        offset = self.table_offset(pos)
        if not offset or index in self._own_tables:
            return
        if self._known_tables().is_shared(offset):
            raise CorruptTable(
                f"The L2 table at {offset:#x} (L1 entry {index}) overlaps the table of another L1"
                " entry, so it cannot be changed safely. Check the image with repair first.",
                level=1,
                index=index,
                value=offset,
                pos=pos,
            )
        self._own_tables.add(index)

    def _overlaps(self, entries: Iterable[int]) -> bool:
        """Whether data would lie on top of an L2 table."""
        return self._guard and self._known_tables().covers(entries)

    def _known_tables(self) -> TableMap:
        if self._table_map is None:
            allocator = self._allocator
            end = allocator.first_taken or allocator.end_of_file
            self._table_map = TableMap(self.geometry, self.l1, end)
            for index in self._new_tables:
                self._table_map.add(self.l1[index])
        return self._table_map

    def _check_overlap(self, found: Lookup, pos: int) -> None:
        if not self._guard:
            return
        geometry = self.geometry
        first = geometry.start_of_cluster(found.offset)
        run = range(first, found.offset + found.length, geometry.cluster_size)
        if self._known_tables().covers(run):
            raise CorruptTable(
                f"Data at guest position {pos} would lie on top of an L2 table (file offset"
                f" {found.offset:#x}). Check the image with repair first.",
                level=2,
                index=geometry.l2_index(pos),
                value=first,
                pos=pos,
            )
