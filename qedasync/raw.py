"""RawImage: a raw file with the methods of an image, so that jobs need not know which they have."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, NamedTuple

from qedasync.disk import Buffer, ClosesOnExit, check_range
from qedasync.engine.budget import Budget
from qedasync.engine.extents import Extent
from qedasync.engine.gate import Gate
from qedasync.engine.sources import RawSource
from qedasync.errors import (
    ImageClosed,
    ImageFailed,
    ReadOnly,
    RequestError,
    StateError,
    StorageError,
)
from qedasync.format.header import SECTOR_BYTES, whole_sectors
from qedasync.image import Cache, as_buffer, as_target, check_choice
from qedasync.storage.base import Storage
from qedasync.storage.host_file import HostFile, lend
from qedasync.storage.locks import LockRole
from qedasync.storage.opener import open_storage
from qedasync.waiting import Ending, Opening

__all__ = ["RawImage", "open_raw"]


class RawImage(ClosesOnExit):
    """An open raw file; made by :func:`open_raw`, an async context manager.

    A disk of whole sectors: of a file that ends inside a sector, the rest of it reads as zeroes.
    Promises, errors and cancellation are those of :class:`qedasync.Image`.
    """

    def __init__(self, storage: Storage, path: str, wish: _Wish) -> None:
        self._storage = storage
        self._path = path
        self._writable = wish.mode == "r+"
        self._write_through = wish.cache == "writethrough"
        self._flushes = wish.cache != "unsafe"
        self._source = RawSource(storage, path)
        self._loop = asyncio.get_running_loop()
        self._budget = Budget(self._loop)
        self._gate = Gate()
        self._size = whole_sectors(storage.size)
        self._ending = Ending(self._close)
        self._failure: StorageError | None = None  # of a flush

    # ------------------------------------------------------------------ facts

    @property
    def path(self) -> str:
        """The file as it was named at open."""
        return self._path

    @property
    def size(self) -> int:
        """The file's bytes, rounded up to 512."""
        return self._size

    @property
    def readonly(self) -> bool:
        """Whether the file was opened with mode ``"r"``."""
        return not self._writable

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called."""
        return self._ending.asked_for

    def __repr__(self) -> str:
        return f"<qedasync.RawImage {self._path!r} {self.size} bytes>"

    # ------------------------------------------------------------------ reads

    async def pread(self, length: int, offset: int) -> bytearray:
        """Exactly ``length`` bytes from ``offset`` on."""
        self._check_range(offset, length)
        data = bytearray(length)
        await self._read([data], offset, length)
        return data

    async def readinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on; answers its length in bytes."""
        return await self.preadv((buffer,), offset)

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int:
        """Fill ``buffers``, one after the other; answers how many bytes."""
        views = [as_target(buffer) for buffer in buffers]
        length = sum(map(len, views))
        self._check_range(offset, length)
        await self._read(views, offset, length)
        return length

    async def _read(
        self, buffers: list[bytearray | memoryview] | list[bytearray], offset: int, length: int
    ) -> None:
        if not length:
            return
        await self._enter()
        try:
            if not self._storage.try_read_into(buffers, offset):
                await self._storage.read_into(buffers, offset)
        finally:
            self._leave(length)

    # ----------------------------------------------------------------- writes

    async def pwrite(self, data: Buffer, offset: int) -> int:
        """Write all of ``data`` at ``offset``; answers its length in bytes."""
        return await self.pwritev((data,), offset)

    async def pwritev(self, buffers: Iterable[Buffer], offset: int) -> int:
        """Write ``buffers``, one after the other; answers how many bytes."""
        views = [as_buffer(buffer) for buffer in buffers]
        length = sum(map(len, views))
        self._check_range(offset, length)
        if not length:
            return 0
        await self._enter(write=True)
        try:
            await self._storage.write(views, offset)
            await self._after_write()
        finally:
            self._leave(length)
        return length

    async def write_zeroes(self, length: int, offset: int) -> None:
        """Make the bytes read as zeroes; the host may take their blocks back."""
        self._check_range(offset, length)
        if not length:
            return
        await self._enter(write=True)
        try:
            await self._storage.write_zeroes(offset, length)
            await self._after_write()
        finally:
            self._leave(0)

    async def discard(self, length: int, offset: int) -> None:
        """The bytes are not needed: they read as zeroes from then on."""
        await self.write_zeroes(length, offset)

    async def _after_write(self) -> None:
        if self._write_through:
            await self._sync()

    async def flush(self) -> None:
        """Make every write that returned before this call survive a power loss."""
        await self._enter(write=self._writable)
        try:
            if self._writable:
                await self._sync()
        finally:
            self._leave(0)

    async def truncate(self, size: int) -> None:
        """Set the size, a multiple of 512; a larger file reads as zeroes there."""
        self._check_open()
        if size < 0 or size % SECTOR_BYTES:
            raise RequestError(
                f"Cannot set the size to {size} bytes: it must be a multiple of {SECTOR_BYTES}",
                length=size,
                size=self.size,
            )
        await self._enter(write=True)
        try:
            await self._storage.truncate(size)
            self._size = size
        finally:
            self._leave(0)

    # -------------------------------------------------------------- the whole

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """Data and holes of ``[offset, offset + length)``, in order, without gaps."""
        self._check_range(offset, length)
        await self._enter()
        try:
            return await self._source.sectors(offset, length)
        finally:
            self._leave(0)

    async def extents(self) -> AsyncIterator[Extent]:
        """The runs of the whole file, looked up as one goes."""
        pos = 0
        while pos < self.size:
            await self._enter()
            try:
                runs = await self._source.first_sectors(pos, self.size - pos)
            finally:
                self._leave(0)
            for run in runs:
                yield run
            pos = runs[-1].end

    @asynccontextmanager
    async def lent(self, *, writing: bool = False) -> AsyncIterator[HostFile | None]:
        """The file itself for large transfers on other threads; None if it is no plain file.

        It is not closed meanwhile. Extents say what lies where. Writes stay below :attr:`size`.

        Args:
            writing: it is to be written too; None if every write has to be durable.
        """
        await self._enter(write=writing)
        try:
            yield None if writing and self._write_through else lend(self._storage)
        finally:
            self._leave(0)

    # ------------------------------------------------------------- life cycle

    async def close(self) -> None:
        """Wait for requests in flight, flush, release the file. Idempotent.

        Cancellation: runs to the end.
        """
        self._budget.shut()
        await self._ending.run()

    async def _close(self) -> None:
        try:
            await self._gate.close()
            self._gate.open()
            if self._writable:
                self._check_failure()
                await self._sync()
        finally:
            await self._storage.close()

    # ---------------------------------------------------------------- helpers

    async def _enter(self, *, write: bool = False) -> None:
        if write:
            self._check_writable()
        if self._budget.used_up:
            await self._budget.pause()
        self._check_open()
        if asyncio.get_running_loop() is not self._loop:
            raise StateError("The image belongs to another event loop: open one on each")
        self._gate.inside += 1

    def _check_writable(self) -> None:
        if not self._writable:
            self._check_open()
            raise ReadOnly('The file was opened read-only; open it with mode "r+"')
        self._check_failure()

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise ImageFailed(
                f"The file takes no writes since a flush failed: {self._failure}. Reads go on;"
                " what was written before may be lost",
                errno=self._failure.errno or errno.EIO,
            ) from self._failure

    async def _sync(self) -> None:
        """After a failed flush nobody knows what is on disk, and the next one may well succeed."""
        if not self._flushes:
            return
        try:
            await self._storage.flush()
        except StorageError as error:
            self._failure = error
            raise

    def _leave(self, length: int) -> None:
        self._gate.leave()
        self._budget.charge(length)

    def _check_open(self) -> None:
        if self.closed:
            raise ImageClosed("The image is closed")

    def _check_range(self, offset: int, length: int) -> None:
        self._check_open()
        check_range("image", offset, length, self._size)


class _Wish(NamedTuple):
    """The arguments of :func:`open_raw`."""

    path: str
    mode: Literal["r", "r+"]
    cache: Cache
    storage: str | Storage
    lock: bool
    create: bool


def open_raw(
    path: str | os.PathLike[str],
    mode: Literal["r", "r+"] = "r",
    *,
    cache: Cache = "writeback",
    storage: str | Storage = "auto",
    lock: bool = True,
    create: bool = False,
) -> Opening[RawImage]:
    """Open a raw file: ``await`` it, or use it in ``async with``.

    Args:
        path: the file; with a storage object, a name for messages.
        mode, cache, storage, lock: as for :func:`qedasync.open`.
        create: make the file if it is not there (mode ``"r+"``).

    Raises:
        StorageError: the file cannot be opened.
        RequestError: an argument is wrong. Raised by the call itself.
    """
    check_choice("mode", mode, ("r", "r+"))
    check_choice("cache", cache, ("writeback", "writethrough", "none", "unsafe"))
    if create and mode != "r+":
        raise RequestError('create needs mode "r+"', errno=errno.EINVAL)
    wish = _Wish(os.fsdecode(path), mode, cache, storage, lock, create)
    return Opening(partial(_open, wish))


async def _open(wish: _Wish) -> RawImage:
    if not isinstance(wish.storage, str):
        return RawImage(wish.storage, wish.path, wish)
    role = LockRole.RAW_READ_WRITE if wish.mode == "r+" else LockRole.READ_ONLY
    storage = await open_storage(
        wish.path,
        wish.storage,
        writable=wish.mode == "r+",
        direct=wish.cache == "none",
        create=wish.create,
        lock=role if wish.lock else None,
    )
    return RawImage(storage, wish.path, wish)
