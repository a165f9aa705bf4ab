"""The fast storage: one file descriptor, inline reads, batched threads for the rest.

Reads that the page cache can serve finish inside the caller (``preadv2`` with ``RWF_NOWAIT``). What
would block goes to a few threads: reads spread over them, several a hop; writes to a buffered file
go one batch at a time, and everything that arrives while a batch runs leaves with the next one, so
a hop through a thread is paid by many writes together (the kernel serialises buffered writes to one
file anyway). Concurrent flushes share one ``fdatasync``.

The race to keep in mind: the threads touch buffers that belong to waiting tasks. Every waiter is a
:class:`~qedasync.storage.workers.Settled`, so no task comes back while a thread still has its
buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Self, TypeVar

from qedasync.errors import StorageError, storage_error
from qedasync.events import Event
from qedasync.storage.base import ZERO_CHUNK, ReadBuffers, Write, WriteBuffers
from qedasync.storage.locks import LockRole, acquire_locks
from qedasync.storage.transfer import (
    ALIGNMENT,
    IOV_MAX,
    direct_read,
    direct_write,
    read_fully,
    total_length,
    write_fully,
)
from qedasync.storage.workers import Workers
from qedasync.waiting import Settled

__all__ = ["PosixStorage"]

_READ_THREADS = 8
_PUNCH_FROM = 128 << 10  # below this, writing zeroes is cheaper than asking the file system
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_MERGE_BYTES = 8 << 20
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)


class _Transfer(Settled):
    """A read, a write or a list of ordered writes, on its way through a thread."""

    __slots__ = ("buffers", "error", "grow_to", "length", "offset", "ordered")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        buffers: Sequence[bytes | bytearray | memoryview],
        offset: int,
        length: int,
        ordered: Sequence[Write] | None = None,
        grow_to: int = 0,
    ) -> None:
        super().__init__(loop)
        self.grow_to = grow_to
        self.buffers = buffers
        self.offset = offset
        self.length = length
        self.ordered = ordered
        self.error: OSError | None = None

    @property
    def aligned(self) -> bool:
        """Whether an O_DIRECT descriptor takes it as it is; growth wants to be alone too."""
        if self.grow_to:
            return False
        if self.ordered is not None:
            return all(
                w.offset % ALIGNMENT == 0 and w.length % ALIGNMENT == 0 for w in self.ordered
            )
        return self.offset % ALIGNMENT == 0 and self.length % ALIGNMENT == 0


class PosixStorage:
    """A file on the host; made by :meth:`open`. Implements ``Storage``.

    Args:
        fd: the descriptor; owned from here on.
        path: for messages.
        loop: the event loop it serves.
        workers: its threads; owned from here on.
        direct: whether the descriptor has ``O_DIRECT``.
        size: the file's length in bytes.
    """

    zero_fills = True

    def __init__(
        self,
        fd: int,
        path: str,
        loop: asyncio.AbstractEventLoop,
        workers: Workers,
        *,
        direct: bool,
        size: int,
        nowait: bool,
    ) -> None:
        self.path = path
        self.direct = direct
        self._fd = fd
        self._size = size
        self._loop = loop
        self._workers = workers
        self._nowait = nowait
        self._read_call = direct_read if direct else read_fully
        self._write_call = direct_write if direct else write_fully
        self._reads: list[_Transfer] = []
        self._writes: list[_Transfer] = []
        self._reading = self._writing = 0  # batches on threads
        self._read_scheduled = self._write_scheduled = False
        self._closed = False
        self._exclusive = False  # an unaligned direct write runs alone
        self._unsynced = False
        self._flushing: _Flush | None = None
        self._next_flush: _Flush | None = None

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        direct: bool = False,
        create: bool = False,
        lock: LockRole | None = None,
    ) -> Self:
        """Open a regular file or block device.

        Args:
            path: the file.
            writable: for reading and writing, else for reading only.
            direct: bypass the page cache (``O_DIRECT``); the caller need not align anything.
            create: make the file if it is not there; its content is left alone if it is.
            lock: QEMU's byte-range locks to take, or None for none.

        Raises:
            StorageError: the host refused (with its errno); a pipe, socket, directory or character
                device is refused with ``EINVAL``.
            ImageLocked: another opener forbids it.
        """
        loop = asyncio.get_running_loop()
        name = os.fsdecode(path)
        workers = Workers(loop, _READ_THREADS, "qedasync-io")
        try:
            fd, size, nowait = await workers.run(
                partial(_open, name, writable, direct, create, lock)
            )
        except BaseException:
            workers.close()
            raise
        return cls(fd, name, loop, workers, direct=direct, size=size, nowait=nowait)

    @property
    def size(self) -> int:
        return self._size

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._fd

    # ------------------------------------------------------------------ reads

    def try_read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> bool:
        if not self._nowait:
            return False
        try:
            done = os.preadv(self._fd, buffers, offset, _NOWAIT)
        except OSError:
            return False
        return done == (len(buffers[0]) if len(buffers) == 1 else total_length(buffers))

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        self._check_open(offset, buffers)
        read = _Transfer(self._loop, buffers, offset, total_length(buffers))
        self._reads.append(read)
        if not self._read_scheduled:
            self._read_scheduled = True
            self._loop.call_soon(self._dispatch_reads)
        try:
            await read.waiter
        except asyncio.CancelledError:
            if not self._withdraw(self._reads, read):
                await read.outlast()
            raise
        if read.error is not None:
            raise self._failed(read)

    def _dispatch_reads(self) -> None:
        """Spread what waits over the idle threads."""
        self._read_scheduled = False
        while self._reads and self._reading < _READ_THREADS:
            share = -(-len(self._reads) // (_READ_THREADS - self._reading))
            batch, self._reads = self._reads[:share], self._reads[share:]
            self._reading += 1
            self._workers.submit(partial(self._read_batch, batch), partial(self._reads_done, batch))

    def _read_batch(self, batch: list[_Transfer]) -> None:
        for read in batch:
            try:
                self._read_call(self._fd, read.buffers, read.offset)  # type: ignore[arg-type]
            except OSError as error:
                read.error = error

    def _reads_done(self, batch: list[_Transfer]) -> None:
        self._reading -= 1
        for read in batch:
            read.finish()
        if self._reads:
            self._dispatch_reads()

    # ----------------------------------------------------------------- writes

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        await self._submit(_Transfer(self._loop, buffers, offset, total_length(buffers)))

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        if grow_to <= self._size:
            grow_to = 0
        if not writes and not grow_to:
            return
        start = min((write.offset for write in writes), default=grow_to)
        end = max((write.offset + write.length for write in writes), default=grow_to)
        await self._submit(_Transfer(self._loop, (), start, end - start, writes, grow_to))

    async def _submit(self, write: _Transfer) -> None:
        if self._closed:
            raise self._is_closed(write.offset, write.length)
        self._writes.append(write)
        if not self._write_scheduled:
            self._write_scheduled = True
            self._loop.call_soon(self._dispatch_writes)
        try:
            await write.waiter
        except asyncio.CancelledError:
            if not self._withdraw(self._writes, write):
                await write.outlast()
            raise
        if write.error is not None:
            raise self._failed(write)

    def _dispatch_writes(self) -> None:
        """Send what waits to a thread: one batch at a time, several if the file is direct."""
        self._write_scheduled = False
        if self.direct:
            self._dispatch_direct_writes()
        elif self._writes and not self._writing:
            batch, self._writes = self._writes, []
            self._start_writes(batch)

    def _dispatch_direct_writes(self) -> None:
        """Aligned writes run side by side; an unaligned one waits for them and runs alone."""
        while self._writes and not self._exclusive:
            if not self._writes[0].aligned:
                if not self._writing:
                    self._exclusive = True
                    self._start_writes([self._writes.pop(0)])
                return
            free = self._workers.limit - self._writing
            if free <= 0:
                return
            ready = next(
                (i for i, write in enumerate(self._writes) if not write.aligned),
                len(self._writes),
            )
            share = -(-ready // free)
            batch, self._writes = self._writes[:share], self._writes[share:]
            self._start_writes(batch)

    def _start_writes(self, batch: list[_Transfer]) -> None:
        self._writing += 1
        self._workers.submit(partial(self._write_batch, batch), partial(self._writes_done, batch))

    def _write_batch(self, batch: list[_Transfer]) -> None:
        """On a thread: all of a batch, adjacent ones together."""
        plain = [write for write in batch if write.ordered is None]
        plain.sort(key=_offset_of)
        for group in _adjacent(plain):
            self._write_group(group)
        for write in batch:
            if write.ordered is not None:
                self._write_ordered(write, write.ordered)

    def _write_group(self, group: list[_Transfer]) -> None:
        if len(group) > 1:
            merged = [buffer for write in group for buffer in write.buffers]
            with contextlib.suppress(OSError):  # then one by one, to see whose fault it is
                self._write_call(self._fd, merged, group[0].offset)
                return
        for write in group:
            try:
                self._write_call(self._fd, write.buffers, write.offset)
            except OSError as error:
                write.error = error

    def _write_ordered(self, transfer: _Transfer, writes: Sequence[Write]) -> None:
        try:
            if transfer.grow_to:
                os.ftruncate(self._fd, transfer.grow_to)
            for group in _adjacent(writes):
                buffers = group[0].buffers
                if len(group) > 1:
                    buffers = [buffer for write in group for buffer in write.buffers]
                self._write_call(self._fd, buffers, group[0].offset)
        except OSError as error:
            transfer.error = error

    def _writes_done(self, batch: list[_Transfer]) -> None:
        self._writing -= 1
        self._exclusive = False
        self._unsynced = True
        for write in batch:
            if write.error is None:
                self._size = max(self._size, write.offset + write.length, write.grow_to)
            write.finish()
        if self._writes:
            self._dispatch_writes()

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        self._check_open(offset, ())
        end = offset + length
        inside = min(end, self._size)
        if inside - offset >= _PUNCH_FROM and await self._punch(offset, inside - offset):
            offset = inside
        while offset < end:
            step = min(len(ZERO_CHUNK), end - offset)
            await self.write([memoryview(ZERO_CHUNK)[:step]], offset, event)
            offset += step

    async def _punch(self, offset: int, length: int) -> bool:
        """Let the file system zero a range; False where it cannot."""
        job = partial(_punch_hole, self._fd, offset, length)
        try:
            done = await self._workers.run(job)
        except OSError as error:
            raise storage_error(error, offset=offset, length=length, path=self.path) from error
        finally:
            self._unsynced = True
        return done

    # --------------------------------------------------------- the whole file

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        self._check_open(None, ())
        if self._unsynced:
            if self._flushing is None:
                flush = self._start_flush(_Flush())
            else:
                flush = self._next_flush = self._next_flush or _Flush()
        elif self._flushing is not None:
            flush = self._flushing  # it began after everything that was acknowledged
        else:
            return
        waiter = Settled(self._loop)
        flush.waiters.append(waiter)
        await waiter.wait()
        if flush.error is not None:
            raise storage_error(flush.error, path=self.path) from flush.error

    def _start_flush(self, flush: _Flush) -> _Flush:
        self._flushing = flush
        self._unsynced = False
        self._workers.submit(partial(flush.run, self._fd), self._flush_done)
        return flush

    def _flush_done(self) -> None:
        flush, self._flushing = self._flushing, None
        assert flush is not None
        if flush.error is not None:
            self._unsynced = True
        if self._next_flush is not None:
            following, self._next_flush = self._next_flush, None
            self._start_flush(following)
        for waiter in flush.waiters:
            waiter.finish()

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        self._check_open(None, ())
        try:
            await self._workers.run(partial(os.ftruncate, self._fd, size))
        except OSError as error:
            raise storage_error(error, offset=size, path=self.path) from error
        self._size = size
        self._unsynced = True

    async def next_data(self, offset: int) -> int:
        self._check_open(offset, ())
        if offset >= self._size:
            return self._size
        return await self._workers.run(partial(_seek_data, self._fd, offset, self._size))

    async def close(self) -> None:
        """Release the descriptor and with it the locks; waits for what is on a thread.

        Cancellation: runs to the end.
        """
        if self._closed:
            return
        self._closed = True
        self._nowait = False
        self._dispatch_reads()
        self._dispatch_writes()
        try:
            await self._workers.drain()
        finally:
            fd, self._fd = self._fd, -1
            self._workers.close()
            os.close(fd)

    # ---------------------------------------------------------------- helpers

    def _withdraw(self, queue: list[_Transfer], transfer: _Transfer) -> bool:
        """Take back a transfer that no thread has seen yet."""
        if transfer in queue:
            queue.remove(transfer)
            return True
        return False

    def _failed(self, transfer: _Transfer) -> StorageError:
        cause = transfer.error
        assert cause is not None
        error = storage_error(cause, offset=transfer.offset, length=transfer.length, path=self.path)
        error.__cause__ = cause
        return error

    def _check_open(self, offset: int | None, buffers: ReadBuffers | WriteBuffers) -> None:
        if self._closed:
            raise self._is_closed(offset, total_length(buffers) if buffers else None)

    def _is_closed(self, offset: int | None, length: int | None) -> StorageError:
        return StorageError(
            errno.EBADF, "The storage is closed", offset=offset, length=length, path=self.path
        )


class _Flush:
    """One ``fdatasync`` and everybody who waits for it."""

    __slots__ = ("error", "waiters")

    def __init__(self) -> None:
        self.waiters: list[Settled] = []
        self.error: OSError | None = None

    def run(self, fd: int) -> None:
        try:
            _datasync(fd)
        except OSError as error:
            self.error = error


_datasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def _offset_of(transfer: _Transfer) -> int:
    return transfer.offset


_W = TypeVar("_W", _Transfer, Write)


def _adjacent(writes: Sequence[_W]) -> Iterator[list[_W]]:
    """Cut ``writes`` into groups that lie end to end in the file, in the order given."""
    group: list[_W] = []
    end = -1
    buffers = length = 0
    for write in writes:
        buffers += len(write.buffers)
        length += write.length
        if group and (write.offset != end or buffers > IOV_MAX or length > _MERGE_BYTES):
            yield group
            group = []
            buffers, length = len(write.buffers), write.length
        group.append(write)
        end = write.offset + write.length
    if group:
        yield group


def _open(
    path: str, writable: bool, direct: bool, create: bool, lock: LockRole | None
) -> tuple[int, int, bool]:
    """On a thread: the descriptor, the size, and whether reads can be tried inline."""
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    if create:
        flags |= os.O_CREAT
    if direct:
        flags |= os.O_DIRECT
    try:
        fd = os.open(path, flags, 0o644)
    except OSError as error:
        hint = None
        if direct and error.errno == errno.EINVAL:
            hint = 'The file system has no O_DIRECT; use another cache mode than "none"'
        raise storage_error(error, hint, path=path) from error
    try:
        size = _size_of(fd, path)
        if lock is not None:
            acquire_locks(fd, lock, path)
        return fd, size, not direct and _can_try(fd)
    except BaseException:
        os.close(fd)
        raise


def _size_of(fd: int, path: str) -> int:
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fstat(fd).st_size
    if stat.S_ISBLK(mode):
        return os.lseek(fd, 0, os.SEEK_END)
    raise StorageError(errno.EINVAL, "Not a regular file or block device", path=path)


def _can_try(fd: int) -> bool:
    """Whether the kernel takes RWF_NOWAIT on this file (tmpfs does not)."""
    if not _NOWAIT:
        return False
    try:
        os.preadv(fd, [bytearray(1)], 0, _NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def _seek_data(fd: int, offset: int, size: int) -> int:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else offset


@lru_cache(maxsize=1)
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C library's fallocate; the os module has none with a mode."""
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def _punch_hole(fd: int, offset: int, length: int) -> bool:
    fallocate = _fallocate()
    if fallocate is None:
        return False
    if fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
        return False
    raise OSError(number, os.strerror(number))
