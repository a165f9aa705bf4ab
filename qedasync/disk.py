"""Disk: what an image and a raw file have in common, and the two ways to stand on one.

Whole-image jobs, the NBD server and the command line take any :class:`Disk`. :class:`DiskStorage`
turns one into a storage, so that an image may lie inside another; :class:`DiskSource` makes it the
backing file of an image.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self, TypeAlias, runtime_checkable

from qedasync.engine.extents import Extent
from qedasync.errors import QEDError, RequestError, StorageError
from qedasync.events import Event
from qedasync.format.header import SECTOR_BYTES
from qedasync.storage.base import ReadBuffers, StorageBase, WriteBuffers

__all__ = ["Disk", "DiskStorage", "DiskSource"]

Buffer: TypeAlias = bytes | bytearray | memoryview


@runtime_checkable
class Disk(Protocol):
    """Guest bytes at offsets, with what is known of them: an ``Image``, a ``RawImage``, or one's
    own. The methods promise what those of :class:`qedasync.Image` do; lengths are bytes.
    """

    @property
    def path(self) -> str:
        """For messages."""
        ...

    @property
    def size(self) -> int:
        """Guest-visible bytes, a multiple of 512."""
        ...

    @property
    def readonly(self) -> bool: ...

    @property
    def closed(self) -> bool: ...

    async def pread(self, length: int, offset: int) -> bytearray: ...

    async def readinto(self, buffer: bytearray | memoryview, offset: int) -> int: ...

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int: ...

    async def pwrite(self, data: Buffer, offset: int) -> int: ...

    async def pwritev(self, buffers: Iterable[Buffer], offset: int) -> int: ...

    async def write_zeroes(self, length: int, offset: int) -> None: ...

    async def discard(self, length: int, offset: int) -> None: ...

    async def flush(self) -> None: ...

    async def truncate(self, size: int) -> None: ...

    async def block_status(self, offset: int, length: int) -> list[Extent]: ...

    def extents(self) -> AsyncIterator[Extent]: ...

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class DiskStorage(StorageBase):
    """A disk as the file that another image lies in; implements ``Storage``. Owns the disk.

    Writes past the end make the disk longer, in whole sectors.
    """

    zero_fills = True

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    @property
    def size(self) -> int:
        return self.disk.size

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        with _as_storage_error(self.disk, offset):
            for buffer in buffers:
                await self._read(memoryview(buffer), offset)
                offset += len(buffer)

    async def _read(self, view: memoryview, offset: int) -> None:
        inside = max(0, min(len(view), self.disk.size - offset))
        if inside:
            await self.disk.readinto(view[:inside], offset)
        view[inside:] = bytes(len(view) - inside)

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        end = offset + sum(map(len, buffers))
        with _as_storage_error(self.disk, offset):
            if end > self.disk.size:
                await self.disk.truncate(_sectors(end))
            await self.disk.pwritev(buffers, offset)

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        with _as_storage_error(self.disk, offset):
            end = offset + length
            if end > self.disk.size:
                await self.disk.truncate(_sectors(end))
            await self.disk.write_zeroes(length, offset)

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        with _as_storage_error(self.disk):
            await self.disk.flush()

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        with _as_storage_error(self.disk, size):
            await self.disk.truncate(_sectors(size))

    async def next_data(self, offset: int) -> int:
        with _as_storage_error(self.disk, offset):
            while offset < self.disk.size:
                for run in await self.disk.block_status(offset, self.disk.size - offset):
                    if not run.zero:
                        return max(run.start, offset)
                    offset = run.end
        return self.disk.size

    async def close(self) -> None:
        await self.disk.close()


class DiskSource:
    """A disk as a backing file; implements the engine's ``Source``. Owns the disk."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    @property
    def size(self) -> int:
        return self.disk.size

    def try_read_into(self, buffers: ReadBuffers, pos: int) -> bool:
        return False

    async def read_into(self, buffers: ReadBuffers, pos: int) -> None:
        await self.disk.preadv(buffers, pos)

    async def block_status(self, pos: int, length: int) -> list[Extent]:
        return await self.disk.block_status(pos, length)

    async def close(self) -> None:
        await self.disk.close()


def _sectors(size: int) -> int:
    return -(-size // SECTOR_BYTES) * SECTOR_BYTES


@contextmanager
def _as_storage_error(disk: Disk, offset: int | None = None) -> Iterator[None]:
    """What the disk says, as a storage says it: to the image on top it is a failing file."""
    try:
        yield
    except StorageError:
        raise
    except QEDError as error:
        number = getattr(error, "errno", None) or errno.EIO
        if isinstance(error, RequestError):
            number = error.errno
        raise StorageError(number, str(error), offset=offset, path=disk.path) from error
