"""The portable storage: a file through the `aiofiles` package, on any platform and any loop.

A file object has one position, so "seek, then transfer" must not be mixed with another request's:
a lock admits one request at a time, in the order of arrival.

A thread cannot be called back when its caller is cancelled. All calls run on the one thread of an
executor of ours, so they run in the order they were made, and that makes settling simple: a
request that is cancelled once it has started is made again from its beginning, behind the call that
is still running. Every request names absolute places, so doing it twice does it once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import aiofiles
import aiofiles.os

from qedasync.errors import storage_error
from qedasync.events import Event
from qedasync.storage.base import ReadBuffers, StorageBase, Write, WriteBuffers, zero_views
from qedasync.storage.locks import LockRole, acquire_locks

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncFileIO

__all__ = ["AiofilesStorage"]

T = TypeVar("T")

_JOIN_UP_TO = 1 << 20  # bytes

_fsync = aiofiles.os.wrap(os.fsync)
_lock = aiofiles.os.wrap(acquire_locks)


class AiofilesStorage(StorageBase):
    """One open file; made by :meth:`open`.

    Args:
        file: an unbuffered aiofiles file.
        executor: where ``file`` makes its calls: one thread, nobody else's. Closed with the file.
        path: for messages.
        size: the file's length in bytes.
    """

    zero_fills = True

    def __init__(
        self,
        file: AsyncFileIO,
        executor: ThreadPoolExecutor,
        *,
        path: str | os.PathLike[str] | None = None,
        size: int = 0,
    ) -> None:
        self._file = file
        self._executor = executor
        self._path = path
        self._size = size
        self._closed = False
        self._lock = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        create: bool = False,
        lock: LockRole | None = None,
    ) -> Self:
        """Open a file.

        Args:
            path: the file.
            writable: for reading and writing, else for reading only.
            create: make the file if it is not there; its content is left alone if it is.
            lock: QEMU's byte-range locks to take, or None for none.

        Raises: StorageError, or the subclass that fits.
        Cancellation: waits for the host's answer; the file is closed again.
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix="qedasync-aiofiles")
        try:
            file = await _open(path, writable, create, executor)
        except OSError as error:
            executor.shutdown()
            raise storage_error(error, path=path) from error
        except BaseException:
            executor.shutdown()
            raise
        storage = cls(file, executor, path=path)
        try:
            if lock is not None:
                await _to_the_end(lambda: _lock(file.fileno(), lock, path, executor=executor))
            storage._size = await storage._request(lambda: file.seek(0, os.SEEK_END))
        except BaseException:
            await storage.close()
            raise
        return storage

    @property
    def size(self) -> int:
        return self._size

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        length = sum(map(len, buffers))
        await self._request(
            lambda: self._scatter(buffers, offset, length), offset=offset, length=length
        )

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        length = sum(map(len, buffers))
        await self._request(
            lambda: self._gather(buffers, offset, length), offset=offset, length=length
        )

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        if grow_to > self._size:
            await self._request(lambda: self._grow(grow_to), offset=grow_to)
        await super().write_many(writes)

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        await self._request(lambda: self._zero(offset, length), offset=offset, length=length)

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        await self._request(lambda: _fsync(self._file.fileno(), executor=self._executor))

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        await self._request(lambda: self._resize(size), offset=size)

    async def next_data(self, offset: int) -> int:
        if self._closed:
            raise storage_error(errno.EBADF, offset=offset, path=self._path)
        return offset if offset < self._size else self._size

    async def close(self) -> None:
        """Close the file once the requests that came before have ended.

        Cancellation: runs to the end.
        """
        await _to_the_end(self._close)

    async def _close(self) -> None:
        async with self._lock:
            if self._closed:
                return
            try:
                await _to_the_end(self._file.close)
            except OSError as error:  # the descriptor is gone all the same
                raise storage_error(error, path=self._path) from error
            finally:
                self._closed = True
                self._executor.shutdown()

    async def _request(
        self,
        step: Callable[[], Awaitable[T]],
        *,
        offset: int | None = None,
        length: int | None = None,
    ) -> T:
        """Run one request when its turn comes.

        Args:
            step: the request, anew at each call.
            offset, length: for errors.
        Raises: StorageError.
        Locks: takes the file's lock.
        Cancellation: may stop while it waits for its turn; after that it runs to the end.
        """
        async with self._lock:
            if self._closed:
                raise storage_error(errno.EBADF, offset=offset, length=length, path=self._path)
            try:
                return await _to_the_end(step)
            except OSError as error:
                # Python refuses a write to a file opened for reading, without an error number.
                reason = errno.EBADF if isinstance(error, io.UnsupportedOperation) else error
                raise storage_error(
                    reason, offset=offset, length=length, path=self._path
                ) from error

    async def _gather(self, buffers: WriteBuffers, offset: int, length: int) -> None:
        """Write buffers; many small ones leave as one, for each costs a thread hop."""
        if len(buffers) > 1 and length <= _JOIN_UP_TO:
            buffers = [b"".join(buffers)]
        await self._put(buffers, offset, length)

    async def _scatter(self, buffers: ReadBuffers, offset: int, length: int) -> None:
        """Fill buffers; many small ones through one."""
        if len(buffers) <= 1 or length > _JOIN_UP_TO:
            await self._fill(buffers, offset)
            return
        joined = memoryview(bytearray(length))
        await self._fill([joined], offset)
        for buffer in buffers:
            buffer[:] = joined[: len(buffer)]
            joined = joined[len(buffer) :]

    async def _fill(self, buffers: ReadBuffers, offset: int) -> None:
        await self._file.seek(offset)
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                got = await self._file.readinto(view)
                if not got:  # the end of the file, which reads on as zeroes
                    view[:] = bytes(len(view))
                    break
                view = view[got:]

    async def _put(
        self, buffers: Iterable[bytes | bytearray | memoryview], offset: int, length: int
    ) -> None:
        if not length:
            return
        try:
            await self._file.seek(offset)
            for buffer in buffers:
                view = memoryview(buffer)
                while view:
                    view = view[await self._write_some(view) :]
        except OSError:
            await self._measure()
            raise
        self._size = max(self._size, offset + length)

    async def _write_some(self, view: memoryview) -> int:
        done = await self._file.write(view)
        if not done:
            raise OSError(errno.EIO, "The host wrote nothing")
        return done

    async def _measure(self) -> None:
        """Look at the length again: a write that failed may have grown the file before."""
        with contextlib.suppress(OSError):
            self._size = await self._file.seek(0, os.SEEK_END)

    async def _zero(self, offset: int, length: int) -> None:
        """Write zeroes where there is a file, and let it grow for the rest."""
        inside = max(0, min(length, self._size - offset))
        await self._put(zero_views(inside), offset, inside)
        if length:
            await self._grow(offset + length)

    async def _grow(self, size: int) -> None:
        if size > self._size:
            await self._resize(size)

    async def _resize(self, size: int) -> None:
        await self._file.truncate(size)
        self._size = size


async def _to_the_end(step: Callable[[], Awaitable[T]]) -> T:
    """Run ``step`` to its end even if we are cancelled; raise that only then.

    Relies on the executor's one thread: what is made again begins after what still runs.
    """
    try:
        return await step()
    except asyncio.CancelledError:
        while True:
            again = asyncio.ensure_future(step())
            await _outlast(again)
            if not again.cancelled():  # as a loop that shuts down does with every task, once
                again.exception()  # looked at: the cancellation outweighs it
                raise


async def _outlast(task: asyncio.Future[T]) -> asyncio.CancelledError | None:
    """Wait until ``task`` is done, and give back our cancellation if one came meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def _open(
    path: str | os.PathLike[str], writable: bool, create: bool, executor: ThreadPoolExecutor
) -> AsyncFileIO:
    """Open the file; a cancellation waits for the outcome, so that no descriptor is forgotten."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CREAT if create else flags, 0o644)

    mode: Literal["rb+", "rb"] = "rb+" if writable else "rb"
    opening = asyncio.ensure_future(
        aiofiles.open(path, mode, buffering=0, opener=opener, executor=executor)
    )
    cancelled = await _outlast(opening)
    if cancelled is None:
        return opening.result()
    if not opening.cancelled() and opening.exception() is None:
        await _to_the_end(opening.result().close)
    raise cancelled
