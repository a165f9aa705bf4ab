"""Part of a storage as a storage, and a storage that somebody else closes."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import qedasync
from qedasync.cli.sizes import whole_sectors

__all__ = ["Borrowed", "Window"]


class Window(qedasync.StorageBase):
    """``size`` bytes of another storage, from ``offset`` on. Owns the other one.

    Args:
        size: None for all that there is, in whole sectors; it may grow then.
    """

    def __init__(self, inner: qedasync.Storage, offset: int, size: int | None) -> None:
        self._inner = inner
        self._offset = offset
        self._fixed = size
        self.zero_fills = inner.zero_fills

    @property
    def size(self) -> int:
        if self._fixed is not None:
            return self._fixed
        return whole_sectors(self._inner.size - self._offset)

    async def read_into(
        self, buffers: Sequence[Any], offset: int, event: qedasync.Event = qedasync.Event.READ_AIO
    ) -> None:
        for buffer in buffers:
            view = memoryview(buffer)
            inside = max(0, min(len(view), self.size - offset))
            if inside:
                await self._inner.read_into([view[:inside]], self._offset + offset, event)
            view[inside:] = bytes(len(view) - inside)
            offset += len(view)

    async def write(
        self, buffers: Sequence[Any], offset: int, event: qedasync.Event = qedasync.Event.WRITE_AIO
    ) -> None:
        self._check_end(offset + sum(map(len, buffers)))
        await self._inner.write(buffers, self._offset + offset, event)

    async def write_zeroes(
        self,
        offset: int,
        length: int,
        event: qedasync.Event = qedasync.Event.PWRITEV_ZERO,
    ) -> None:
        self._check_end(offset + length)
        await self._inner.write_zeroes(self._offset + offset, length, event)

    async def flush(self, event: qedasync.Event = qedasync.Event.FLUSH_TO_DISK) -> None:
        await self._inner.flush(event)

    async def truncate(self, size: int, event: qedasync.Event = qedasync.Event.TRUNCATE) -> None:
        if self._fixed is not None:
            raise qedasync.StorageError(errno.ENOTSUP, "Cannot resize fixed-size raw disks")
        await self._inner.truncate(self._offset + size, event)

    async def next_data(self, offset: int) -> int:
        found = await self._inner.next_data(self._offset + offset)
        return min(max(found - self._offset, offset), self.size)

    async def close(self) -> None:
        await self._inner.close()

    def _check_end(self, end: int) -> None:
        if self._fixed is not None and end > self._fixed:
            raise qedasync.StorageError(errno.ENOSPC, offset=end)


class Borrowed(qedasync.StorageBase):
    """Another storage to read from; closing this one leaves it open."""

    def __init__(self, inner: qedasync.Storage) -> None:
        self._inner = inner

    @property
    def size(self) -> int:
        return self._inner.size

    async def read_into(
        self, buffers: Sequence[Any], offset: int, event: qedasync.Event = qedasync.Event.READ_AIO
    ) -> None:
        await self._inner.read_into(buffers, offset, event)

    async def write(
        self, buffers: Sequence[Any], offset: int, event: qedasync.Event = qedasync.Event.WRITE_AIO
    ) -> None:
        raise qedasync.StorageError(errno.EROFS)

    async def flush(self, event: qedasync.Event = qedasync.Event.FLUSH_TO_DISK) -> None:
        pass

    async def truncate(self, size: int, event: qedasync.Event = qedasync.Event.TRUNCATE) -> None:
        raise qedasync.StorageError(errno.EROFS)

    async def close(self) -> None:
        pass
