"""Requests that the kernel takes without a thread: many in one call, told by an eventfd.

For one descriptor on one event loop. The kernel moves bytes to and from memory of ours, aligned as
``O_DIRECT`` wants it, never the caller's buffers: these are copied before a write is handed over
and after a read is done. So a read that is cancelled can be left behind.

Nothing is reported from here. What the kernel does not take, or not do in full (an error, the end
of the file, something it would have to wait for), is the caller's to do again in another way, and
that way then says what is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from qedasync.storage.base import Started
from qedasync.storage.batch import Transfer
from qedasync.storage.io_uring import RingQueue
from qedasync.storage.linux_aio import AioCalls, AioQueue, host_calls
from qedasync.storage.queue import SLOTS, WORDS, Queue
from qedasync.storage.syscalls import Memory, system_call
from qedasync.storage.transfer import ALIGNMENT, gather, scatter
from qedasync.waiting import Settled

__all__ = ["LONGEST", "Done", "KernelIO", "MakeQueue", "aio_queue", "best_queue", "ring_queue"]

LONGEST = 64 << 10
"""Bytes of the longest request; copying more would take the loop too long."""

_TOGETHER = 16  # reads that leave before the loop's turn has ended: the device begins with them
_USELESS = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EEXIST})
"""Answers to a submit that the next one would get as well."""

Done = Callable[[list[Transfer], list[Transfer]], None]
"""Gets the reads and the writes that the kernel has let go of."""

_Promise: TypeAlias = "asyncio.Future[bytearray | None]"


class MakeQueue(Protocol):
    """Makes a queue for a descriptor whose bytes go through ``data``, or None if there is none."""

    def __call__(self, fd: int, data: Memory) -> Queue | None: ...


def ring_queue(fd: int, data: Memory) -> Queue | None:
    """io_uring, if the host has it."""
    call = system_call()
    if call is not None:
        with contextlib.suppress(OSError):
            return RingQueue(fd, data, len(data.view) // SLOTS, call)
    return None


def aio_queue(
    fd: int, data: Memory, calls: Callable[[], AioCalls | None] = host_calls
) -> Queue | None:
    """Native AIO, if the host has it; for ``O_DIRECT``."""
    found = calls()
    if found is not None:
        with contextlib.suppress(OSError):
            return AioQueue(fd, data, len(data.view) // SLOTS, found)
    return None


def best_queue(fd: int, data: Memory) -> Queue | None:
    """What the host has, for ``O_DIRECT``."""
    return ring_queue(fd, data) or aio_queue(fd, data)


class KernelIO:
    """Requests on one descriptor; takes nothing where the host has no queue for it.

    Args:
        fd: stays the caller's.
        loop: where completions are delivered.
        done: called with transfers that the kernel has let go of. One that was not carried out has
            ``refused`` set.
        make_queue: the host's way.
        alignment: of offsets and lengths, in bytes; a power of two.
        longest: bytes of the longest request, aligned; the memory for it is taken when it is used.

    Attributes:
        active: whether it takes anything.
        writing: writes with the kernel.
    """

    def __init__(
        self,
        fd: int,
        loop: asyncio.AbstractEventLoop,
        done: Done,
        make_queue: MakeQueue,
        *,
        alignment: int = ALIGNMENT,
        longest: int = LONGEST,
    ) -> None:
        self._loop = loop
        self._done = done
        self._mask = alignment - 1
        self._free = list(range(SLOTS))
        # By slot: who waits, where the bytes will be, how many; what it is for, whether a write.
        self._reads: dict[int, tuple[_Promise, int, int]] = {}
        self._transfers: dict[int, tuple[Transfer, bool]] = {}
        self._ready: list[int] = []  # slots with reads that wait for the turn's end
        self._due = False
        self._idle: Settled | None = None
        self.writing = 0
        self._longest = longest
        memory = Memory(SLOTS * longest)
        self._data = memory.view
        self._queue = make_queue(fd, memory)
        self.active = self._queue is not None
        if self._queue is not None:
            self._words, self._layout = self._queue.words, self._queue.layout
            loop.add_reader(self._queue.eventfd, self._wake)

    # ------------------------------------------------------------------- in

    def start_read(self, length: int, offset: int) -> Started | None:
        """Read ``length`` bytes in the file; None if this is not the way, and nothing was begun."""
        mask = self._mask
        skip = offset & mask
        span = (skip + length + mask) & ~mask
        if not self.active or not self._free or not 0 < span <= self._longest:
            return None
        slot = self._free.pop()
        self._lay_out(slot, self._layout.read, span, offset - skip)
        started: _Promise = self._loop.create_future()
        self._reads[slot] = started, slot * self._longest + skip, length
        self._ready.append(slot)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._submit_due)
        elif len(self._ready) == _TOGETHER:
            self._submit_ready()
        return started

    def start_reads(self, reads: Sequence[Transfer]) -> list[Transfer]:
        """Hand reads to the kernel; answers those that it does not take."""
        return self._start(reads, writes=False)

    def start_writes(self, writes: Sequence[Transfer]) -> list[Transfer]:
        """Hand aligned writes inside the file to the kernel; answers those it does not take."""
        return self._start(writes, writes=True)

    def _start(self, transfers: Sequence[Transfer], *, writes: bool) -> list[Transfer]:
        if not self.active:
            return list(transfers)
        left: list[Transfer] = []
        ready: list[int] = []
        for transfer in transfers:
            slot = self._prepare(transfer, writes)
            if slot is None:
                left.append(transfer)
            else:
                ready.append(slot)
        return left + [self._land(slot)[0] for slot in self._submit(ready)]

    def _prepare(self, transfer: Transfer, write: bool) -> int | None:
        """Lay out a request in a free slot; None if this is not the way for it."""
        skip = transfer.offset & self._mask
        span = (skip + transfer.length + self._mask) & ~self._mask
        if not 0 < span <= self._longest or transfer.refused or not self._free:
            return None
        slot = self._free.pop()
        layout, where = self._layout, slot * self._longest
        try:
            if write:
                gather(transfer.buffers, self._data[where : where + span])
            self._lay_out(
                slot, layout.write if write else layout.read, span, transfer.offset - skip
            )
        except (TypeError, ValueError):  # a buffer of another shape, or no such offset
            self._free.append(slot)
            return None
        self.writing += write
        self._transfers[slot] = transfer, write
        return slot

    def _lay_out(self, slot: int, kind: int, span: int, offset: int) -> None:
        """Fill in what changes of the slot's request; raises ValueError for no such offset."""
        words, layout, word = self._words, self._layout, slot * WORDS
        words[word + layout.offset] = offset
        words[word + layout.kind] = kind
        words[word + layout.length] = span

    def _submit_due(self) -> None:
        self._due = False
        self._submit_ready()

    def _submit_ready(self) -> None:
        ready, self._ready = self._ready, []
        for slot in self._submit(ready):
            self._finish_read(slot, -1)
            self._tell_idle()

    def _submit(self, slots: Sequence[int]) -> Sequence[int]:
        """Hand requests over; answers those that the kernel did not take."""
        if not slots:
            return ()
        assert self._queue is not None
        try:
            return slots[self._queue.submit(slots) :]
        except OSError as error:
            self.active = error.errno not in _USELESS
            return slots

    # ------------------------------------------------------------------ out

    def _wake(self) -> None:
        """The eventfd has fired: see what is done."""
        assert self._queue is not None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._queue.eventfd)
        ended: tuple[list[Transfer], list[Transfer]] = ([], [])
        for slot, result in self._queue.completed():
            if slot in self._reads:
                self._finish_read(slot, result)
            else:
                transfer, write = self._land(slot)
                transfer.refused = not self._carried_out(slot, transfer, write, result)
                ended[write].append(transfer)
        self._done(*ended)
        self._tell_idle()

    def _finish_read(self, slot: int, result: int) -> None:
        """The slot is free again; give the bytes to who waits, if anybody does."""
        started, where, length = self._reads.pop(slot)
        self._free.append(slot)
        if not started.done():
            whole = result >= length + (where & self._mask)
            started.set_result(bytearray(self._data[where : where + length]) if whole else None)

    def _land(self, slot: int) -> tuple[Transfer, bool]:
        """The slot is free again; answers what it was for, and whether that was a write."""
        transfer, write = self._transfers.pop(slot)
        self._free.append(slot)
        self.writing -= write
        return transfer, write

    def _carried_out(self, slot: int, transfer: Transfer, write: bool, result: int) -> bool:
        """Whether all of it was done; a read's bytes go to where they are wanted."""
        if write:
            return result == transfer.length
        skip = transfer.offset & self._mask
        if result < skip + transfer.length:
            return False
        start = slot * self._longest + skip
        try:
            scatter(self._data[start : start + transfer.length], transfer.buffers)
        except (TypeError, ValueError):
            return False
        return True

    # ------------------------------------------------------------------ end

    @property
    def _busy(self) -> bool:
        return len(self._free) < SLOTS

    def _tell_idle(self) -> None:
        if self._idle is not None and not self._busy:
            self._idle.finish()

    async def drain(self) -> None:
        """Wait until the kernel has nothing.

        Cancellation: runs to the end.
        """
        while self._busy:
            self._idle = Settled(self._loop)
            await self._idle.wait()

    def stop(self) -> None:
        """Take nothing from here on; nothing may be with the kernel. Idempotent."""
        if self._queue is not None and self._queue.eventfd >= 0:
            self.active = False
            self._loop.remove_reader(self._queue.eventfd)
            os.close(self._queue.eventfd)
            self._queue.eventfd = -1
            del self._data, self._words

    def release(self) -> None:
        """After :meth:`stop`, give the kernel's part back; blocks. Idempotent."""
        if self._queue is not None:
            self._queue.close()
