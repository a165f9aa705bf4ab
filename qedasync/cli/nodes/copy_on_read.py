"""Copy-on-read: what is read from the backing file is kept in the image."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import qedasync
from qedasync.cli.nodes.disk_filter import DiskFilter, spread

__all__ = ["CopyOnRead"]

_OWN = (qedasync.ExtentKind.DATA, qedasync.ExtentKind.ZERO)
_ENTRY_BYTES = 8
_MAX_COPY = 16 << 20  # bytes that QEMU copies at once


class CopyOnRead(DiskFilter):
    """An image whose reads leave the clusters they touched in it.

    What is copied at once is marked as zeroes if it is nothing else. A cluster that somebody writes
    meanwhile keeps what was written.
    """

    async def pread(self, length: int, offset: int) -> bytearray:
        end = offset + length
        if not length or end > self.size or offset < 0:
            return await super().pread(length, offset)
        data = bytearray(length)
        async for start, stop, own in self._runs(offset, end):
            first, last = max(start, offset), min(stop, end)
            place = memoryview(data)[first - offset : last - offset]
            if own:
                await self._disk.preadv((place,), first)
            else:
                place[:] = (await self._copy(start, stop))[first - start : last - start]
        return data

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int:
        views = list(buffers)
        return spread(await self.pread(sum(map(len, views)), offset), views)

    async def _copy(self, start: int, stop: int) -> memoryview:
        """What shows through in whole clusters, now in the image."""
        data = await self._disk.pread(stop - start, start)
        await self._disk.populate(data, start)
        return memoryview(data)

    async def _runs(self, pos: int, end: int) -> AsyncIterator[tuple[int, int, bool]]:
        """Runs of the clusters that hold ``[pos, end)``: start, stop, whether they are allocated.

        As QEMU finds them: none reaches over the end of an L2 table.
        """
        size = self._disk.cluster_size
        table_reach = self._disk.table_size * size // _ENTRY_BYTES * size
        pos, end = pos // size * size, min(-(-end // size) * size, self.size)
        while pos < end:
            stop = min(end, (pos // table_reach + 1) * table_reach)
            runs = await self._disk.block_status(pos, stop - pos)
            own = runs[0].kind in _OWN
            stop = next((run.start for run in runs if (run.kind in _OWN) != own), stop)
            if not own:
                stop = min(stop, pos + _MAX_COPY)
            yield pos, stop, own
            pos = stop
