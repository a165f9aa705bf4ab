"""Bulk: an empty image filled by threads that write clusters themselves.

The allocating queue makes each group of writes reachable before it goes on. Where nobody looks at
the image until all of it is there, that can be left to the end: clusters are handed out by
counting, threads write them to the file, and the tables follow. The order is that of a commit with
a backing file: data, flush, L2 tables, flush, L1. So a crash leaves an empty image with a longer
file, and NEED_CHECK is not needed.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable

from qedasync.engine.allocator import Allocator
from qedasync.engine.tables import Tables
from qedasync.events import Event
from qedasync.format.geometry import ENTRY_BYTES, SLICE_BYTES, SLICE_ENTRIES, Geometry
from qedasync.format.table import pack_entries
from qedasync.storage.base import Storage, Write
from qedasync.storage.host_file import HostFile

__all__ = ["Bulk"]

_RESERVED = 16 << 20  # bytes that the host finds room for at once

_Flush = Callable[[], Awaitable[None]]


class Bulk:
    """Clusters for one empty image.

    Only one thread at a time may call :meth:`take` or :meth:`link`. The caller of the others holds
    the image for itself.

    Attributes:
        file: where the clusters are written, at the offsets that :meth:`take` gives.
        cluster_size: bytes.
        in_doubt: what has been handed out is neither in the image nor cut off.
    """

    def __init__(
        self, file: HostFile, storage: Storage, tables: Tables, allocator: Allocator
    ) -> None:
        self.file = file
        self._storage = storage
        self._tables = tables
        self._allocator = allocator
        self._end = self._reserved = allocator.end_of_file
        self.in_doubt = False
        self._slices: dict[int, array[int]] = {}

    @property
    def cluster_size(self) -> int:
        return self._geometry.cluster_size

    @property
    def _geometry(self) -> Geometry:
        return self._tables.geometry

    def take(self, n_clusters: int) -> int:
        """The file offset of so many new clusters, which read as zeroes."""
        offset = self._end
        self._end = offset + n_clusters * self.cluster_size
        if self._end > self._reserved:
            length = max(_RESERVED, self._end - self._reserved)
            self.file.reserve(self._reserved, length)
            self._reserved += length
        return offset

    def link(self, pos: int, n_clusters: int, offset: int) -> None:
        """Let the clusters from ``offset`` on be those of the guest from ``pos`` on.

        Args:
            pos: a multiple of the cluster size, inside the image; nothing is linked there yet.
        """
        geometry, size = self._geometry, self.cluster_size
        while n_clusters:
            first = (pos >> geometry.cluster_bits) & (SLICE_ENTRIES - 1)
            n = min(n_clusters, SLICE_ENTRIES - first)
            entries = self._slices.setdefault(
                geometry.slice_of(pos), array("Q", bytes(SLICE_BYTES))
            )
            entries[first : first + n] = array("Q", range(offset, offset + n * size, size))
            pos, offset, n_clusters = pos + n * size, offset + n * size, n_clusters - n

    async def begin(self, flush: _Flush) -> None:
        """Cut off what lies behind the file's end, as a commit does."""
        if self._storage.size > self._end:
            await self._storage.truncate(self._end)
            await flush()

    async def give_up(self) -> None:
        """Cut off what has been written: whoever gets these clusters next takes them for zeroes."""
        if self._end > self._allocator.end_of_file:
            self.in_doubt = True
            await self._cut(self._allocator.end_of_file)
            self.in_doubt = False

    async def _cut(self, end: int) -> None:
        """Let the file end there; what was reserved behind goes back to the host."""
        await self._storage.truncate(max(self._reserved, self._end))
        await self._storage.truncate(end)

    async def finish(self, flush: _Flush) -> None:
        """Write the tables of what has been linked.

        Raises:
            StorageError: one could not be written.
        """
        if not self._slices:
            await self.give_up()
            return
        self.in_doubt = True
        tables: dict[int, int] = {}
        geometry, size = self._geometry, self._geometry.table_size
        for number in sorted(self._slices):
            index = geometry.l1_index(number << geometry.slice_shift)
            if index not in tables:
                tables[index] = self.take(size)
        start = self._allocator.end_of_file
        self._allocator.take((self._end - start) // self.cluster_size)
        await self._cut(self._end)
        await flush()
        await self._storage.write_many(
            [self._slice_write(number, tables) for number in self._slices]
        )
        await flush()
        await self._write_l1(tables)
        self._tables.publish({}, tables)
        self.in_doubt = False

    def _slice_write(self, number: int, tables: dict[int, int]) -> Write:
        geometry = self._geometry
        pos = number << geometry.slice_shift
        offset = geometry.slice_file_offset(tables[geometry.l1_index(pos)], pos)
        data = pack_entries(self._slices[number])
        return Write(offset, [data], len(data), Event.L2_ALLOC_WRITE)

    async def _write_l1(self, tables: dict[int, int]) -> None:
        """The entries up to the last new one, in whole sectors: the others are all 0."""
        entries = self._tables.l1[:]
        for index, offset in tables.items():
            entries[index] = offset
        sector = 512 // ENTRY_BYTES
        end = min(-(-(max(tables) + 1) // sector) * sector, len(entries))
        await self._storage.write(
            [pack_entries(entries, 0, end)], self._geometry.l1_table_offset, Event.L1_UPDATE
        )
