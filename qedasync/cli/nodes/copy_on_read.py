"""Copy-on-read: what is read from the backing file is kept in the image."""

from __future__ import annotations

from collections.abc import Iterable

import qedasync
from qedasync.cli.nodes.disk_filter import DiskFilter

__all__ = ["CopyOnRead"]


class CopyOnRead(DiskFilter):
    """An image whose reads leave the clusters they touched in it."""

    async def pread(self, length: int, offset: int) -> bytearray:
        data = await super().pread(length, offset)
        await self._keep(offset, length)
        return data

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int:
        length = await super().preadv(list(buffers), offset)
        await self._keep(offset, length)
        return length

    async def _keep(self, offset: int, length: int) -> None:
        size = self._disk.cluster_size
        start = offset // size * size
        end = min(-(-(offset + length) // size) * size, self._disk.size)
        if start >= end:
            return
        for run in await self._disk.block_status(start, end - start):
            if run.kind in (qedasync.ExtentKind.BACKING, qedasync.ExtentKind.UNALLOCATED):
                data = await self._disk.pread(run.length, run.start)
                if any(data):
                    await self._disk.pwrite(data, run.start)
                else:
                    await self._disk.write_zeroes(run.length, run.start)
