"""A disk around another one, to be changed in a point or two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Self

import qedasync

__all__ = ["DiskFilter", "Shifted", "spread"]

_SHORTCUTS = ("try_pread", "try_pwrite", "pwrite_soon", "try_locate", "lent", "bulk")


class DiskFilter:
    """Does what the other disk does; owns it.

    What only some disks have is there, too; but no ways around the methods here.
    """

    def __init__(self, disk: Any) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        if name in _SHORTCUTS:
            raise AttributeError(name)
        return getattr(self._disk, name)

    @property
    def path(self) -> str:
        return str(self._disk.path)

    @property
    def size(self) -> int:
        return int(self._disk.size)

    @property
    def readonly(self) -> bool:
        return bool(self._disk.readonly)

    @property
    def closed(self) -> bool:
        return bool(self._disk.closed)

    async def pread(self, length: int, offset: int) -> bytearray:
        data: bytearray = await self._disk.pread(length, offset)
        return data

    async def readinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        return await self.preadv((buffer,), offset)

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int:
        return int(await self._disk.preadv(buffers, offset))

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        return await self.pwritev((data,), offset)

    async def pwritev(self, buffers: Iterable[bytes | bytearray | memoryview], offset: int) -> int:
        return int(await self._disk.pwritev(buffers, offset))

    async def write_zeroes(self, length: int, offset: int) -> None:
        await self._disk.write_zeroes(length, offset)

    async def discard(self, length: int, offset: int) -> None:
        await self._disk.discard(length, offset)

    async def flush(self) -> None:
        await self._disk.flush()

    async def truncate(self, size: int) -> None:
        await self._disk.truncate(size)

    async def block_status(self, offset: int, length: int) -> list[qedasync.Extent]:
        return [self.told(run) for run in await self._disk.block_status(offset, length)]

    async def extents(self) -> AsyncIterator[qedasync.Extent]:
        from qedasync.jobs.runs import runs_from

        async with aclosing(runs_from(self._disk, 0)) as runs:
            async for run in runs:
                yield self.told(run)

    def told(self, run: qedasync.Extent) -> qedasync.Extent:
        """A run of the other disk as this one tells it."""
        return run

    async def close(self) -> None:
        await self._disk.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()


class Shifted(DiskFilter):
    """A raw disk that begins within its file: places in the file are told as such.

    Args:
        offset: where in the file it begins.
    """

    def __init__(self, disk: Any, offset: int) -> None:
        super().__init__(disk)
        self._offset = offset

    def told(self, run: qedasync.Extent) -> qedasync.Extent:
        return run if run.offset is None else replace(run, offset=run.offset + self._offset)


def spread(data: bytearray, buffers: Iterable[bytearray | memoryview]) -> int:
    """Fill the buffers with what was read for them; answers its length."""
    rest = memoryview(data)
    for buffer in buffers:
        buffer[:] = rest[: len(buffer)]
        rest = rest[len(buffer) :]
    return len(data)
