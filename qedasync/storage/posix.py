"""The fast storage: one file descriptor, inline reads, batched threads for the rest.

Reads that the page cache can serve finish inside the caller (``preadv2`` with ``RWFNOWAIT``). What
would block goes to io_uring or a few threads (:mod:`qedasync.storage.reading`). Writes to a
buffered file go to a thread one batch at a time, and everything that arrives while a batch runs
leaves with the next one, so a hop through a thread is paid by many writes together (the kernel
serialises buffered writes to one file anyway). Concurrent flushes share one ``fdatasync``.

The race to keep in mind: the threads touch buffers that belong to waiting tasks. Every waiter is a
:class:`~qedasync.storage.workers.Settled`, so no task comes back while a thread still has its
buffer.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Self

from qedasync.errors import StorageError, storage_error
from qedasync.events import Event
from qedasync.storage import thread_usage
from qedasync.storage.base import ReadBuffers, Started, Write, WriteBuffers, zero_views
from qedasync.storage.batch import Channel, Transfer, settle
from qedasync.storage.buffers import new_buffer
from qedasync.storage.file_map import FileMap
from qedasync.storage.flushing import Flusher
from qedasync.storage.host import (
    NOWAIT,
    OpenedFile,
    data_runs,
    open_file,
    preadv,
    seek_data,
)
from qedasync.storage.host_file import HostFile
from qedasync.storage.locks import LockRole
from qedasync.storage.reading import RING_FROM, ReadQueue
from qedasync.storage.transfer import total_length
from qedasync.storage.workers import Job, Workers
from qedasync.waiting import until_done

if TYPE_CHECKING:
    from qedasync.storage.residency import Residency

__all__ = ["PosixStorage"]

_THREADS = 8
_INLINE_WRITE_BYTES = 64 << 10  # a longer write goes to a thread
_INLINE_WRITES = 160  # and so does a list with more of them,
_INLINE_GROUP_BYTES = 1 << 20  # or longer than this
_SLOW_WRITE = 0.002  # seconds; an inline write that takes so long, and has waited,
_SLOW_REST = 500  # is followed by that many times as long without
_LONGEST_REST = 10.0
_WATCH = 10.0  # seconds after a slow inline write, or a rest, in which others are watched
_PUNCH_FROM = 128 << 10  # below this, writing zeroes is cheaper than asking the file system


class PosixStorage:
    """A file on the host; made by :meth:`open`. Implements ``Storage``.

    Args:
        file: the descriptor, owned from here on, and what is known of it.
        path: for messages.
        loop: the event loop it serves.
        workers: its threads; owned from here on.
        clock: seconds; how long inline writes take is measured with it.
        waits: how often the loop's thread has waited for something so far.
        ring_from: reads that would block before a ring is made for them.
    """

    zero_fills = True
    direct = False
    """Whether the descriptor has ``O_DIRECT``."""

    _together = 0
    """So many that wait leave before the loop's turn has ended; 0 for never."""

    def __init__(
        self,
        file: OpenedFile,
        path: str,
        loop: asyncio.AbstractEventLoop,
        workers: Workers,
        *,
        clock: Callable[[], float] = perf_counter,
        waits: Callable[[], int] = thread_usage.waits,
        ring_from: int = RING_FROM,
    ) -> None:
        self.path = path
        self._fd = file.fd
        self._size = file.size
        self._loop = loop
        self._workers = workers
        self._nowait = file.nowait
        self._may_write_inline = file.local
        self._clock = clock
        self._waits = waits
        self._slow_until = 0.0  # after an inline write that had to wait, none until then
        self._watched_until = 0.0  # after a slow one
        self._channel = Channel.of(file.fd, direct=self.direct)
        self._reads = ReadQueue(
            self._channel, loop, workers, ring_from=ring_from, together=self._together
        )
        self._writes: list[Transfer] = []
        self._writing = 0  # batches on threads
        self._write_scheduled = False
        self._closed = False
        self._map: FileMap | None = None
        self._residency: Residency | None = None
        self._released: asyncio.Future[None] | None = None  # what a second close waits for
        self._truncations = 0  # that have succeeded
        self._flusher = Flusher(file.fd, loop, workers)

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        create: bool = False,
        lock: LockRole | None = None,
    ) -> Self:
        """Open a regular file or block device.

        Args:
            path: the file.
            writable: for reading and writing, else for reading only.
            create: make the file if it is not there; its content is left alone if it is.
            lock: QEMU's byte-range locks to take, or None for none.

        Raises:
            StorageError: the host refused (with its errno); a pipe, socket, directory or character
                device is refused with ``EINVAL``.
            ImageLocked: another opener forbids it.
        """
        loop = asyncio.get_running_loop()
        name = os.fsdecode(path)
        workers = Workers(loop, _THREADS, "qedasync-io")
        opened: list[OpenedFile] = []  # kept for us even if we are cancelled
        try:
            await workers.run(
                lambda: opened.append(open_file(name, writable, cls.direct, create, lock))
            )
        except BaseException:
            workers.close()
            for file in opened:
                os.close(file.fd)
            raise
        return cls(opened[0], name, loop, workers)

    @property
    def size(self) -> int:
        return self._size

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._fd

    def lend(self) -> HostFile | None:
        """The file for blocking transfers on other threads, as long as the storage is open.

        Nothing is kept in order with what goes through the storage itself, and its ``size`` does
        not follow: who writes past the end calls :meth:`truncate` afterwards.
        """
        if self._closed or self.direct:
            return None
        return HostFile(self._fd, self._note_foreign_write)

    def map(self) -> FileMap | None:
        """A map of the file for as long as the storage is open; None if it is not safe.

        For a file that is open for reading only. Another call gives the same map.
        """
        if self._map is None and not self._closed and not self.direct:
            self._map = FileMap.of(self._fd, self._loop)
        return self._map

    def resident(self, offset: int, length: int) -> bool:
        """Whether the page cache holds all of a range, so that sending it from :meth:`fileno` does
        not wait for the disk.
        """
        if self._closed or not self._nowait:
            return False
        if self._residency is None:
            from qedasync.storage.residency import Residency  # late: few need it

            self._residency = Residency(self._fd)
        return self._residency.holds(offset, length)

    def _note_foreign_write(self) -> None:
        self._flusher.unsynced = True

    # ------------------------------------------------------------------ reads

    def try_read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> bool:
        if not self._nowait:
            return False
        try:
            done = preadv(self._fd, buffers, offset, NOWAIT)
        except (OSError, OverflowError):
            return False
        if len(buffers) == 1:
            return done == len(buffers[0])
        return done == total_length(buffers)

    def try_read_one(self, length: int, offset: int) -> bytearray | None:
        """``length`` bytes in a new buffer, where :meth:`try_read_into` would fill it; else None.

        The buffer's own few steps are what there is to save in a cached read.
        """
        if self._nowait:
            data = new_buffer(length)
            try:
                if preadv(self._fd, (data,), offset, NOWAIT) == length:
                    return data
            except (OSError, OverflowError):
                pass
        return None

    def start_read(self, length: int, offset: int) -> Started | None:
        """Have the kernel read ``length`` bytes, without a thread; None if this is not the way.

        For one small run that :meth:`try_read_one` did not give.
        """
        return None if self._closed else self._reads.start(length, offset)

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        self._check_open(offset, buffers)
        read = Transfer(self._loop, buffers, offset, total_length(buffers))
        await self._reads.read(read)
        if read.error is not None:
            raise self._failed(read)

    # ----------------------------------------------------------------- writes

    def try_write(self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO) -> bool:
        if len(buffers) == 1:
            return self.try_write_one(buffers[0], offset, len(buffers[0]))
        length = total_length(buffers)
        return 0 < length <= _INLINE_WRITE_BYTES and self._try_write_many(
            [Write(offset, buffers, length, event)], 0
        )

    def try_write_one(self, data: bytes | bytearray | memoryview, offset: int, length: int) -> bool:
        """As :meth:`try_write`, with one buffer of ``length`` bytes.

        A small write to the page cache of a local file system costs less than a thread hop. It may
        block all the same, where the host is short of memory. So after slow ones the threads do the
        writing for a while, and whenever they have the file: its lock would make us wait. A flush
        holds no lock while it waits for the disk.
        """
        if self._writing or self._writes or not self._may_write_inline:
            return False
        begin = self._clock()
        if length > _INLINE_WRITE_BYTES or begin < self._slow_until:
            return False
        self._flusher.unsynced = True
        waits = self._waits() if begin < self._watched_until else None
        try:
            done = os.pwrite(self._fd, data, offset)  # without a vector it is cheaper
        except (OSError, OverflowError):
            done = -1  # a thread tries again, and says what is wrong
        if self._clock() - begin > _SLOW_WRITE:
            self._note_slow(begin, waits)
        if done != length:
            return False
        if offset + length > self._size and length:
            self._size = offset + length
        return True

    def _try_write_many(self, writes: Sequence[Write], grow_to: int) -> bool:
        """Several small writes inline, in order; after False any of them may have been made."""
        if (
            len(writes) > _INLINE_WRITES
            or sum([write.length for write in writes]) > _INLINE_GROUP_BYTES
            or self._writing
            or not self._may_write_inline
            or self._writes
        ):
            return False
        begin = self._clock()
        if begin < self._slow_until:
            return False
        self._flusher.unsynced = True
        waits = self._waits() if begin < self._watched_until else None
        try:
            self._channel.write_in_order(writes, grow_to)
        except (OSError, OverflowError):
            return False
        finally:
            if self._clock() - begin > _SLOW_WRITE:
                self._note_slow(begin, waits)
        end = max((write.offset + write.length for write in writes), default=0)
        self._size = max(self._size, end, grow_to)
        return True

    def _note_slow(self, begin: float, waits: int | None) -> None:
        """An inline write took long. Did it wait for something, or for the processor?

        Only the former gets better on a thread. The kernel counts how often this thread has waited,
        but asking costs half a write. So the first slow one passes, and after it each is watched
        for a while.

        Args:
            begin: when it began.
            waits: how often the thread had waited before, if anybody had asked.
        """
        end = self._clock()
        if waits is not None and self._waits() > waits:
            self._slow_until = end + min(_SLOW_REST * (end - begin), _LONGEST_REST)
        self._watched_until = max(end, self._slow_until) + _WATCH

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        if not self.try_write(buffers, offset):
            await self._submit(Transfer(self._loop, buffers, offset, total_length(buffers)))

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        if grow_to <= self._size:
            grow_to = 0
        writes = [write for write in writes if write.length]
        if self._try_write_many(writes, grow_to):
            return
        start = min((write.offset for write in writes), default=grow_to)
        end = max((write.offset + write.length for write in writes), default=grow_to)
        transfer = Transfer(self._loop, (), start, end - start, ordered=writes, grow_to=grow_to)
        await self._submit(transfer)

    async def _submit(self, write: Transfer) -> None:
        """Queue a transfer and wait until a thread has carried it out.

        Cancellation: taken back if no thread has it yet, else after it has ended.
        """
        if self._closed:
            raise self._is_closed(write.offset, write.length)
        if not write.length and not write.grow_to:
            return
        self._writes.append(write)
        if not self._write_scheduled:
            self._write_scheduled = True
            self._loop.call_soon(self._dispatch_writes)
        elif len(self._writes) == self._together:
            self._dispatch_writes()
        await settle(write, lambda: self._writes)
        if write.error is not None:
            raise self._failed(write)

    def _dispatch_writes(self) -> None:
        """Send what waits to a thread, one batch at a time."""
        self._write_scheduled = False
        if self._writes and not self._writing:
            batch, self._writes = self._writes, []
            self._start_writes(batch)

    def _start_writes(self, batch: list[Transfer]) -> None:
        self._writing += 1
        self._workers.submit(
            partial(self._channel.run_writes, batch),
            partial(self._writes_done, batch, self._truncations),
        )

    def _writes_done(self, batch: list[Transfer], truncations: int) -> None:
        self._writing -= 1
        self._flusher.unsynced = True
        for write in batch:
            if write.error is None and write.end > self._size:
                self._size = write.end
        if truncations != self._truncations:  # one beside the batch: only the host knows
            self._size = os.fstat(self._fd).st_size
        for write in batch:
            write.finish()
        if self._writes:
            self._dispatch_writes()

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        end = offset + length
        inside = min(end, self._size)
        if inside - offset >= _PUNCH_FROM:
            await self._submit(Transfer(self._loop, (), offset, inside - offset, zeroes=True))
            offset = inside
        for piece in zero_views(end - offset):
            await self.write([piece], offset, event)
            offset += len(piece)

    # --------------------------------------------------------- the whole file

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        self._check_open(None, ())
        try:
            await self._flusher.flush()
        except OSError as error:
            raise storage_error(error, path=self.path) from error

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        self._check_open(None, ())
        cut = Job(self._loop, partial(os.ftruncate, self._fd, size))
        self._writing += 1  # keeps other writes out
        self._workers.submit(cut.run, partial(self._truncate_done, cut, size))
        await cut.wait()
        if isinstance(cut.error, OSError):
            raise storage_error(cut.error, offset=size, path=self.path) from cut.error
        if cut.error is not None:
            raise cut.error

    def _truncate_done(self, cut: Job[None], size: int) -> None:
        """On the loop, even if nobody waits any more: a cancelled truncate has been made."""
        self._writing -= 1
        self._flusher.unsynced = True
        if cut.error is None:
            self._size = size
            self._truncations += 1
        cut.finish()
        if self._writes:
            self._dispatch_writes()

    async def next_data(self, offset: int) -> int:
        self._check_open(offset, ())
        if offset >= self._size:
            return self._size
        return await self._workers.run(partial(seek_data, self._fd, offset, self._size))

    async def data_runs(self, offset: int, end: int, count: int) -> list[tuple[int, int]]:
        """The first ``count`` runs in ``[offset, end)`` that may hold anything but zeroes."""
        self._check_open(offset, ())
        end = min(end, self._size)
        return await self._workers.run(partial(data_runs, self._fd, offset, end, count))

    async def close(self) -> None:
        """Release the descriptor and with it the locks; waits for what is on a thread.

        Cancellation: runs to the end.
        """
        if self._released is not None:
            await until_done(self._released)
            return
        self._released = self._loop.create_future()
        self._closed = True
        self._nowait = self._may_write_inline = False
        self._dispatch_writes()
        self._flusher.begin()
        try:
            await self._drain()
        finally:
            if self._map is not None:
                self._map.close()
            fd, self._fd = self._fd, -1
            self._workers.close()
            os.close(fd)
            self._released.set_result(None)

    async def _drain(self) -> None:
        """Wait until nothing is under way.

        Cancellation: runs to the end.
        """
        try:
            await self._reads.close()
        finally:
            await self._workers.drain()

    # ---------------------------------------------------------------- helpers

    def _failed(self, transfer: Transfer) -> StorageError:
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
