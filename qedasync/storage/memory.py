"""A file that lives in memory: for tests, demos and crash states.

:class:`SparseBytes` is the content, synchronous and pure; :class:`MemoryStorage` serves it under
the storage contract. Only chunks that were written take memory, so a file may be many TiB long.
Invariant: bytes of a chunk that lie past the content's size are zeroes.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Sequence
from typing import Self, TypeAlias

from qedasync.errors import storage_error
from qedasync.events import Event
from qedasync.storage.base import ReadBuffers, StorageBase, Write, WriteBuffers

__all__ = ["MemoryStorage", "SparseBytes", "CHUNK"]

CHUNK = 1 << 16
"""Bytes of a chunk: what one written byte costs, and the grain of ``next_data``."""

Bytes: TypeAlias = bytes | bytearray | memoryview


class SparseBytes:
    """Growable bytes in which a hole costs nothing.

    Copies share their chunks until one of them writes: a copy costs microseconds, not megabytes.

    Attributes:
        size: length in bytes.
    """

    __slots__ = ("_chunks", "_owned", "size")

    def __init__(self, initial: Bytes = b"") -> None:
        self.size = 0
        self._chunks: dict[int, bytearray] = {}
        self._owned: set[int] = set()  # chunks that no copy can see
        self.write(initial, 0)

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on; holes and what is past the end read as zeroes."""
        view, done = memoryview(buffer), 0
        for index, start, stop in _pieces(offset, len(view)):
            piece, done = view[done : done + stop - start], done + stop - start
            chunk = self._chunks.get(index)
            piece[:] = bytes(len(piece)) if chunk is None else memoryview(chunk)[start:stop]

    def write(self, data: Bytes, offset: int) -> None:
        """Put ``data`` at ``offset``, growing as needed; no data changes nothing."""
        view, done = memoryview(data), 0
        for index, start, stop in _pieces(offset, len(view)):
            self._own(index)[start:stop] = view[done : done + stop - start]
            done += stop - start
        if done:
            self.size = max(self.size, offset + done)

    def zero(self, offset: int, length: int) -> None:
        """Like writing ``length`` zeroes, but whole chunks are dropped and holes stay holes."""
        end = offset + length
        for index in self._present(offset // CHUNK, -(-end // CHUNK)):
            start = max(offset - index * CHUNK, 0)
            stop = min(end - index * CHUNK, CHUNK)
            if stop - start == CHUNK:
                del self._chunks[index]
                self._owned.discard(index)
            else:
                self._own(index)[start:stop] = bytes(stop - start)
        if length:
            self.size = max(self.size, end)

    def resize(self, size: int) -> None:
        """Cut or grow to ``size`` bytes; growth reads as zeroes."""
        if size < self.size:
            self.zero(size, self.size - size)
        self.size = size

    def next_data(self, offset: int) -> int:
        """The first place at or after ``offset`` in a chunk that was written; ``size`` if none."""
        if offset // CHUNK in self._chunks:
            return min(offset, self.size)
        following = (index for index in self._chunks if index * CHUNK > offset)
        first = min(following, default=None)
        return self.size if first is None else min(first * CHUNK, self.size)

    def copy(self) -> Self:
        """The same content, to be changed on its own."""
        twin = type(self)()
        twin._chunks = dict(self._chunks)
        twin.size = self.size
        self._owned.clear()
        return twin

    def __bytes__(self) -> bytes:
        buffer = bytearray(self.size)
        self.read_into(buffer, 0)
        return bytes(buffer)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.size} bytes, {len(self._chunks)} chunks>"

    def _own(self, index: int) -> bytearray:
        """The chunk, made if it is not there, copied if a copy of ours can see it."""
        if index in self._owned:
            return self._chunks[index]
        chunk = self._chunks.get(index)
        chunk = bytearray(CHUNK) if chunk is None else bytearray(chunk)
        self._chunks[index] = chunk
        self._owned.add(index)
        return chunk

    def _present(self, first: int, stop: int) -> list[int]:
        """Numbers of the chunks in ``[first, stop)`` that exist, whichever way is the shorter."""
        if stop - first <= len(self._chunks):
            return [index for index in range(first, stop) if index in self._chunks]
        return [index for index in self._chunks if first <= index < stop]


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cut a range at the chunks' borders: (chunk number, start and stop inside the chunk)."""
    end = offset + length
    while offset < end:
        index, start = divmod(offset, CHUNK)
        stop = min(CHUNK, start + end - offset)
        yield index, start, stop
        offset += stop - start


class MemoryStorage(StorageBase):
    """A storage without a file.

    Args:
        initial: content at the start. A :class:`SparseBytes` is taken over, not copied.
        inline: whether calls complete at once. Without it ``try_read_into`` always answers False,
            and every coroutine suspends for one turn of the loop before it acts.

    Attributes:
        content: the bytes; they stay readable after :meth:`close`.
    """

    zero_fills = True

    def __init__(self, initial: Bytes | SparseBytes = b"", *, inline: bool = True) -> None:
        self.content = initial if isinstance(initial, SparseBytes) else SparseBytes(initial)
        self._inline = inline
        self._closed = False

    @property
    def size(self) -> int:
        return self.content.size

    def snapshot(self) -> bytes:
        """All of the content; for small files."""
        return bytes(self.content)

    def copy(self) -> MemoryStorage:
        """Another storage, open, that begins with this one's content."""
        return MemoryStorage(self.content.copy(), inline=self._inline)

    def try_read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> bool:
        if not self._inline or self._closed or offset < 0:
            return False
        self._fill(buffers, offset)
        return True

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        await self._ready(offset, sum(map(len, buffers)))
        self._fill(buffers, offset)

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        await self._ready(offset, sum(map(len, buffers)))
        self._put(buffers, offset)

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        first = min(writes, key=lambda write: write.offset, default=None)
        if first is None:
            await self._ready()
        else:
            await self._ready(first.offset, first.length)
        if grow_to > self.size:
            self.content.resize(grow_to)
        for write in writes:
            self._put(write.buffers, write.offset)

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        await self._ready(offset, length)
        self.content.zero(offset, length)

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        await self._ready()

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        await self._ready(size)
        self.content.resize(size)

    async def next_data(self, offset: int) -> int:
        await self._ready(offset)
        return self.content.next_data(offset)

    async def close(self) -> None:
        self._closed = True

    async def _ready(self, offset: int | None = None, length: int | None = None) -> None:
        """Wait for our turn, then refuse what a file would refuse.

        Cancellation: before anything was touched.
        """
        if not self._inline:
            await asyncio.sleep(0)
        if self._closed:
            raise storage_error(errno.EBADF, offset=offset, length=length)
        if offset is not None and offset < 0:
            raise storage_error(errno.EINVAL, offset=offset, length=length)

    def _fill(self, buffers: ReadBuffers, offset: int) -> None:
        for buffer in buffers:
            self.content.read_into(buffer, offset)
            offset += len(buffer)

    def _put(self, buffers: WriteBuffers, offset: int) -> None:
        for buffer in buffers:
            self.content.write(buffer, offset)
            offset += len(buffer)
