"""A storage for a program without an event loop: every call blocks until it is done.

Its coroutines never suspend. So who has one file to look at, and nothing to do meanwhile, can run a
coroutine over it by hand, and need not even import asyncio. On a loop it holds up everybody else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from qedasync.errors import storage_error
from qedasync.events import Event
from qedasync.storage.base import ReadBuffers, StorageBase, WriteBuffers
from qedasync.storage.host import data_runs, datasync, open_descriptor, seek_data
from qedasync.storage.locks import LockRole
from qedasync.storage.transfer import read_fully, total_length, write_fully

__all__ = ["BlockingStorage"]


class BlockingStorage(StorageBase):
    """A file on the host; made by :meth:`open`. Implements ``Storage``.

    Args:
        fd: owned from here on.
        size: the file's bytes.
        path: for messages.
    """

    zero_fills = True

    def __init__(self, fd: int, size: int, path: str) -> None:
        self._fd = fd
        self._size = size
        self._path = path

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        create: bool = False,
        lock: LockRole | None = None,
    ) -> Self:
        """Open a regular file or block device.

        Args and raises: as :func:`qedasync.storage.opener.open_storage`.
        """
        name = os.fsdecode(path)
        fd, size = open_descriptor(name, writable, False, create, lock)
        return cls(fd, size, name)

    @property
    def size(self) -> int:
        return self._size

    def try_read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> bool:
        """Blocks, too: who uses this storage has nothing else to do."""
        try:
            read_fully(self._fd, buffers, offset)
        except OSError:
            return False
        return True

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        with self._reporting(offset, total_length(buffers)):
            read_fully(self._fd, buffers, offset)

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        length = total_length(buffers)
        if not length:
            return
        with self._reporting(offset, length):
            write_fully(self._fd, buffers, offset)
        self._size = max(self._size, offset + length)

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        inside = min(offset + length, self._size) - offset
        if inside > 0 and self._punch(offset, inside):
            offset, length = offset + inside, length - inside
        await super().write_zeroes(offset, length, event)

    def _punch(self, offset: int, length: int) -> bool:
        """Let the host have the blocks back; False where it does not take them."""
        from qedasync.storage.libc import punch_hole  # late: it comes with ctypes

        with self._reporting(offset, length):
            return punch_hole(self._fd, offset, length)

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        with self._reporting():
            datasync(self._fd)

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        with self._reporting(size):
            os.ftruncate(self._fd, size)
        self._size = size

    async def next_data(self, offset: int) -> int:
        with self._reporting(offset):
            return seek_data(self._fd, min(offset, self._size), self._size)

    async def data_runs(self, offset: int, end: int, count: int) -> list[tuple[int, int]]:
        """The first ``count`` runs of data in ``[offset, end)``: where each begins and ends."""
        with self._reporting(offset):
            return data_runs(self._fd, offset, end, count)

    async def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @contextmanager
    def _reporting(self, offset: int | None = None, length: int | None = None) -> Iterator[None]:
        """Say where it was that the host failed, or that there is no file any more."""
        try:
            if self._fd < 0:
                raise OSError(errno.EBADF, "The storage is closed")
            yield
        except OSError as error:
            raise storage_error(error, offset=offset, length=length, path=self._path) from error
