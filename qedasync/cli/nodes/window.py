"""Part of a storage as a storage."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import qedasync

__all__ = ["Window"]


class Window(qedasync.StorageBase):
    """``size`` bytes of another storage, from ``offset`` on. Owns the other one; does not grow."""

    def __init__(self, inner: qedasync.Storage, offset: int, size: int) -> None:
        self._inner = inner
        self._offset = offset
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    async def read_into(
        self, buffers: Sequence[Any], offset: int, event: qedasync.Event = qedasync.Event.READ_AIO
    ) -> None:
        for buffer in buffers:
            view = memoryview(buffer)
            inside = max(0, min(len(view), self._size - offset))
            if inside:
                await self._inner.read_into([view[:inside]], self._offset + offset, event)
            view[inside:] = bytes(len(view) - inside)
            offset += len(view)

    async def write(
        self, buffers: Sequence[Any], offset: int, event: qedasync.Event = qedasync.Event.WRITE_AIO
    ) -> None:
        if offset + sum(map(len, buffers)) > self._size:
            raise qedasync.StorageError(errno.ENOSPC, offset=offset)
        await self._inner.write(buffers, self._offset + offset, event)

    async def write_zeroes(
        self,
        offset: int,
        length: int,
        event: qedasync.Event = qedasync.Event.PWRITEV_ZERO,
    ) -> None:
        if offset + length > self._size:
            raise qedasync.StorageError(errno.ENOSPC, offset=offset)
        await self._inner.write_zeroes(self._offset + offset, length, event)

    async def flush(self, event: qedasync.Event = qedasync.Event.FLUSH_TO_DISK) -> None:
        await self._inner.flush(event)

    async def truncate(self, size: int, event: qedasync.Event = qedasync.Event.TRUNCATE) -> None:
        if size != self._size:
            raise qedasync.StorageError(errno.ENOTSUP, "Cannot resize fixed-size raw disks")

    async def next_data(self, offset: int) -> int:
        found = await self._inner.next_data(self._offset + offset)
        return min(max(found - self._offset, offset), self._size)

    async def close(self) -> None:
        await self._inner.close()
