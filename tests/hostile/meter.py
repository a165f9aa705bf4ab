"""A storage that counts what is asked of it: what an image costs, without a clock."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qedasync.errors import storage_error
from qedasync.events import Event
from qedasync.storage.base import ReadBuffers, Storage, StorageBase, Write, WriteBuffers

__all__ = ["Meter"]


class Meter(StorageBase):
    """Passes everything on to ``inner``, which it owns.

    Args:
        room: bytes that may be written; then the disk is full.

    Attributes:
        calls: of every kind.
        bytes_read, bytes_written: as asked for; zeroes count as bytes nowhere.
        changes: calls that were to change the file, refused ones too.
        longest: the most bytes asked for by one read.
    """

    def __init__(self, inner: Storage, room: int = 16 << 20) -> None:
        self.inner = inner
        self.zero_fills = inner.zero_fills
        self.room = room
        self.calls = self.bytes_read = self.bytes_written = self.changes = self.longest = 0
        self.closed = False
        self._reads_left: int | None = None

    @contextmanager
    def only(self, reads: int) -> Iterator[None]:
        """For the time being, only so many reads succeed."""
        self._reads_left = reads
        try:
            yield
        finally:
            self._reads_left = None

    @property
    def size(self) -> int:
        return self.inner.size

    def try_read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> bool:
        if not self._count_read(buffers):
            return False
        return self.inner.try_read_into(buffers, offset, event)

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        if not self._count_read(buffers):
            raise storage_error(errno.ETIMEDOUT, offset=offset)
        await self.inner.read_into(buffers, offset, event)

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        self._count_write(sum(map(len, buffers)), offset)
        await self.inner.write(buffers, offset, event)

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        for write in writes:
            self._count_write(write.length, write.offset)
        self._count_write(0, grow_to)
        await self.inner.write_many(writes, grow_to=grow_to)

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        self._count_write(0, offset + length)
        await self.inner.write_zeroes(offset, length, event)

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        self.calls += 1
        await self.inner.flush(event)

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        self._count_write(0, size)
        await self.inner.truncate(size, event)

    async def next_data(self, offset: int) -> int:
        self.calls += 1
        return await self.inner.next_data(offset)

    async def close(self) -> None:
        self.closed = True
        await self.inner.close()

    def _count_read(self, buffers: ReadBuffers) -> bool:
        """False if there were enough."""
        length = sum(map(len, buffers))
        self.calls += 1
        self.bytes_read += length
        self.longest = max(self.longest, length)
        if self._reads_left is None:
            return True
        self._reads_left -= 1
        return self._reads_left >= 0

    def _count_write(self, length: int, end: int) -> None:
        self.calls += 1
        self.changes += 1
        self.bytes_written += length
        if self.bytes_written > self.room:
            raise storage_error(errno.ENOSPC, offset=end, length=length)
        if end >= 1 << 63:
            raise storage_error(errno.EFBIG, offset=end, length=length)
