"""Disk: what an image and a raw file have in common, and the two ways to stand on one.

Whole-image jobs, the NBD server and the command line take any :class:`Disk`. :class:`DiskStorage`
turns one into a storage, so that an image may lie inside another; :class:`DiskSource` makes it the
backing file of an image.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self, TypeAlias, runtime_checkable

from qedasync.engine.extents import Extent
from qedasync.errors import (
    BackingError,
    FormatError,
    ImageClosed,
    QEDError,
    RequestError,
    StorageError,
)
from qedasync.events import Event
from qedasync.format.header import whole_sectors
from qedasync.storage.base import ReadBuffers, StorageBase, Write, WriteBuffers

__all__ = ["ClosesOnExit", "Disk", "DiskStorage", "DiskSource", "check_range"]

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


def check_range(what: str, offset: int, length: int, size: int) -> None:
    """Raise RequestError unless ``[offset, offset + length)`` is inside ``[0, size)``.

    Args:
        what: that has this size, for the message.
    """
    if offset < 0 or length < 0 or offset + length > size:
        raise RequestError(
            f"{length} bytes at offset {offset} are not inside the {what} of {size} bytes",
            offset=offset,
            length=length,
            size=size,
        )


class ClosesOnExit(ABC):
    """``async with`` for a disk: closes it at the end.

    If the block raised, that is what leaves it; a close that fails as well is noted there.
    """

    @property
    @abstractmethod
    def path(self) -> str: ...

    @abstractmethod
    async def close(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except QEDError as closing:
            if error is None:
                raise
            error.add_note(f"Closing {self.path!r} failed too: {closing}")


class DiskStorage(StorageBase):
    """A disk as the file that another image lies in; implements ``Storage``. Owns the disk.

    The disk has whole sectors, and at least as many as the file needs: the file's length is known
    here only, and what the disk has behind it is zeroes. A disk that cannot be made shorter stays
    as long as it is.
    """

    zero_fills = True

    def __init__(self, disk: Disk) -> None:
        import asyncio  # late: not everything that knows disks needs an event loop

        self.disk = disk
        self._size = disk.size
        self._resizing = asyncio.Lock()

    @property
    def size(self) -> int:
        return self._size

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        with _as_storage_error(self.disk, offset, sum(map(len, buffers))):
            for buffer in buffers:
                await self._read(memoryview(buffer), offset)
                offset += len(buffer)

    async def _read(self, view: memoryview, offset: int) -> None:
        inside = max(0, min(len(view), self._size - offset))
        if inside:
            await self.disk.readinto(view[:inside], offset)
        view[inside:] = bytes(len(view) - inside)

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        length = sum(map(len, buffers))
        with _as_storage_error(self.disk, offset, length):
            if length:
                await self._grow(offset + length)
                await self.disk.pwritev(buffers, offset)

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        start = min((write.offset for write in writes), default=grow_to)
        end = max((write.offset + write.length for write in writes), default=grow_to)
        with _as_storage_error(self.disk, start, end - start):
            await self._grow(grow_to)
        for write in writes:
            await self.write(write.buffers, write.offset, write.event)

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        with _as_storage_error(self.disk, offset, length):
            if length:
                await self._grow(offset + length)
                await self.disk.write_zeroes(length, offset)

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        with _as_storage_error(self.disk):
            await self.disk.flush()

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        with _as_storage_error(self.disk, size):
            if size < 0:
                raise RequestError(f"a file cannot have {size} bytes", size=size)
            async with self._resizing:
                if size < self._size:
                    await self._cut(size)
                else:
                    await self._lengthen(size)

    async def _grow(self, size: int) -> None:
        """Be at least so long; others may grow it too."""
        if size > self._size or self.disk.closed:
            async with self._resizing:
                await self._lengthen(max(size, self._size))

    async def _lengthen(self, size: int) -> None:
        if size > self.disk.size or self.disk.closed:
            await self.disk.truncate(whole_sectors(size))
        self._size = size

    async def _cut(self, size: int) -> None:
        """What is cut off must read as zeroes when the file is longer again."""
        old, self._size = self._size, size
        try:
            try:
                await self.disk.truncate(whole_sectors(size))
            except RequestError as error:
                if error.errno != errno.ENOTSUP:
                    raise
            left = min(old, self.disk.size) - size
            if left > 0:
                await self.disk.write_zeroes(left, size)
        except BaseException:
            self._size = old
            raise

    async def next_data(self, offset: int) -> int:
        with _as_storage_error(self.disk, offset):
            while offset < self._size:
                for run in await self.disk.block_status(offset, self._size - offset):
                    if not run.zero:
                        return max(run.start, offset)
                    offset = run.end
        return self._size

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

    def try_read_one(self, length: int, pos: int) -> bytearray | None:
        return None

    async def read_into(self, buffers: ReadBuffers, pos: int) -> None:
        try:
            await self.disk.preadv(buffers, pos)
        except (FormatError, ImageClosed) as error:
            raise self._useless(error) from error

    async def block_status(self, pos: int, length: int) -> list[Extent]:
        try:
            return await self.disk.block_status(pos, length)
        except (FormatError, ImageClosed) as error:
            raise self._useless(error) from error

    async def close(self) -> None:
        await self.disk.close()

    def _useless(self, error: FormatError | ImageClosed) -> BackingError:
        """Names the disk, or one would look for the fault in the image on top."""
        return BackingError(
            f"the backing disk {self.disk.path!r} cannot be used: {error}",
            name=self.disk.path,
            errno=getattr(error, "errno", errno.EBADF),
        )


@contextmanager
def _as_storage_error(
    disk: Disk, offset: int | None = None, length: int | None = None
) -> Iterator[None]:
    """What the disk says, as a storage says it: to the image on top it is a failing file."""
    try:
        yield
    except QEDError as error:
        if isinstance(error, StorageError) and error.offset == offset and error.length == length:
            raise
        number = getattr(error, "errno", None) or errno.EIO
        if isinstance(error, ImageClosed):
            number = errno.EBADF
        raise StorageError(
            number, str(error), offset=offset, length=length, path=disk.path
        ) from error
