"""Writing: each run of a request goes in place, or to the allocating queue.

Writes in place take no lock and wait for nobody. A request's runs go one after another, each looked
up when its turn comes, as in QEMU.

Source: qemu 7.2 block/qed.c: qed_aio_write_data, qed_aio_write_inplace, qed_aio_write_alloc.
"""

from __future__ import annotations

import asyncio

from qedasync.engine.alloc_queue import AllocQueue
from qedasync.engine.buffers import cut
from qedasync.engine.source import Source
from qedasync.engine.tables import LOOKUPS_PER_TURN, Tables
from qedasync.events import Event
from qedasync.format.cluster import ClusterKind, Lookup, NeedSlice
from qedasync.storage.base import Storage, WriteBuffers, zero_views

__all__ = ["Writer"]


class Writer:
    """Writes of one image.

    Attributes:
        backing: what shows through where nothing is allocated, or None.
        image_size: guest bytes; a zero write that reaches it covers the last cluster.
    """

    def __init__(self, storage: Storage, tables: Tables, queue: AllocQueue) -> None:
        self.backing: Source | None = None
        self.image_size = 0
        self._storage = storage
        self._tables = tables
        self._queue = queue

    async def write(self, buffers: WriteBuffers, pos: int, length: int) -> None:
        """Write ``buffers``, ``length`` bytes in all, at ``pos``.

        Raises:
            QEDError: a run failed; those before it stay written, the others are as they were.

        Locks: none here. Cancellation: between runs, or when the run under way has ended.
        """
        done = 0
        while done < length:
            found = await self._find(pos + done, length - done)
            part = buffers if found.length == length else cut(buffers, done, found.length)
            if found.kind is ClusterKind.FOUND:
                await self._storage.write(part, found.offset)
            else:
                await self._queue.write(pos + done, found.length, part)
            done += found.length

    async def write_zeroes(self, pos: int, length: int) -> None:
        """Make ``[pos, pos + length)`` read as zeroes.

        Whole unallocated clusters are marked ZERO; mapped ones keep their clusters and are zeroed
        in place. A part of an unallocated cluster that reads as zeroes anyway marks all of it.

        Differs from QEMU: zeroes up to the image's end cover the last cluster, whole or not.
        """
        done = steps = 0
        while done < length:
            start = pos + done
            found = await self._find(start, length - done)
            step = found.length
            if found.kind is ClusterKind.FOUND:
                await self._storage.write_zeroes(found.offset, step, Event.PWRITEV_ZERO)
            elif found.kind is not ClusterKind.ZERO:
                step = await self._zero_unallocated(start, step)
            done += step
            steps += 1
            if steps % LOOKUPS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def discard(self, pos: int, length: int) -> None:
        """Give the host's blocks of whole mapped clusters back; they read as zeroes then.

        The clusters stay mapped, and whatever is not mapped here stays as it is.
        """
        geometry = self._tables.geometry
        end = pos + length
        pos = geometry.round_up(pos)
        if end < self.image_size:
            end = geometry.start_of_cluster(end)
        steps = 0
        while pos < end:
            found = await self._find(pos, end - pos)
            if found.kind is ClusterKind.FOUND:
                await self._storage.write_zeroes(found.offset, found.length, Event.PWRITEV_ZERO)
            pos += found.length
            steps += 1
            if steps % LOOKUPS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _find(self, pos: int, length: int) -> Lookup:
        """The run at ``pos``, cut at its slice: a queued request stays within one."""
        found = self._tables.lookup(pos, length)
        if type(found) is NeedSlice:
            found = await self._tables.find_cluster(pos, length)
        assert type(found) is Lookup
        if found.kind is ClusterKind.L1:
            span = 1 << self._tables.geometry.slice_shift
            found = found._replace(length=min(found.length, span - (pos & (span - 1))))
        return found

    async def _zero_unallocated(self, pos: int, length: int) -> int:
        """Zero the beginning of an unallocated run; answers how much was done."""
        geometry = self._tables.geometry
        end = pos + length
        head = min(geometry.round_up(pos), end)
        if head > pos:
            await self._zero_part(pos, head - pos)
            return head - pos
        whole = end if end >= self.image_size else geometry.start_of_cluster(end)
        if whole > pos:
            await self._queue.write(pos, whole - pos, None)
            return whole - pos
        await self._zero_part(pos, length)
        return length

    async def _zero_part(self, pos: int, length: int) -> None:
        """Zero part of one unallocated cluster."""
        geometry = self._tables.geometry
        start = geometry.start_of_cluster(pos)
        covered = pos == start and pos + length >= self.image_size
        if covered or self.backing is None or start >= self.backing.size:
            await self._queue.write(pos, length, None)
            return
        await self._queue.write(pos, length, [*zero_views(length)])
