"""Linux's native AIO: many requests in one call, and an eventfd that tells when some are done.

For a descriptor with ``O_DIRECT`` on one event loop. The kernel moves bytes to and from memory of
ours, aligned as it wants it, never the caller's buffers: these are copied before a write is handed
over and after a read is done. Requests carry ``RWF_NOWAIT``, so handing them over does not hold up
the loop.

Nothing is reported from here. What the kernel does not take, or not do in full (an error, the end
of the file, something it would have to wait for), is the caller's to do again in another way, and
that way then says what is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import mmap
import os
import platform
import struct
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache

from qedasync.storage.batch import Transfer
from qedasync.storage.host import NOWAIT
from qedasync.storage.transfer import ALIGNMENT, gather, round_up, scatter
from qedasync.waiting import Settled

__all__ = ["LONGEST", "SLOTS", "AioCalls", "NativeAio", "host_calls"]

SLOTS = 256
"""Requests that may be with the kernel at once; devices hardly take more."""

LONGEST = 64 << 10
"""Bytes of the longest request, aligned; copying more would take the loop too long."""

_CALLS = {
    "x86_64": {"setup": 206, "destroy": 207, "getevents": 208, "submit": 209},
    "aarch64": {"setup": 0, "destroy": 1, "submit": 2, "getevents": 4},
}
_USELESS = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})
"""Answers to a submit that the next one would get as well."""

_IOCB = struct.Struct("<QIIHhIQQqQII")
"""data, key, rw_flags; opcode, priority, descriptor; address, bytes, offset; 0, flags, eventfd."""
_EVENT = struct.Struct("<QQqq")
"""data, iocb, result, second result."""
_PREAD, _PWRITE = 0, 1
_WITH_EVENTFD = 1
_MAX_OFFSET = 1 << 62
_SPARE_CONTEXTS = 8

Done = Callable[[list[Transfer], list[Transfer]], None]
"""Gets the reads and the writes that the kernel has let go of."""


class AioCalls:
    """The system calls, which the C library lacks; addresses are plain numbers.

    Args:
        syscall: the C library's function, told to keep ``errno``.
        numbers: of the calls, by name.
    """

    def __init__(self, syscall: Callable[..., int], numbers: dict[str, int]) -> None:
        self._syscall = syscall
        self._numbers = numbers
        self._spare: list[int] = []
        os.register_at_fork(after_in_child=self._spare.clear)  # a child has none of them

    def setup(self) -> int:
        """A context for :data:`SLOTS` requests."""
        with contextlib.suppress(IndexError):
            return self._spare.pop()
        context = ctypes.c_ulong(0)
        self._call("setup", SLOTS, ctypes.addressof(context))
        return context.value

    def destroy(self, context: int) -> None:
        """Give back a context with no request in it; blocks.

        The kernel takes tens of milliseconds, so a few are kept for the next files.
        """
        if len(self._spare) < _SPARE_CONTEXTS:
            self._spare.append(context)
        else:
            self._call("destroy", context)

    def submit(self, context: int, count: int, iocbs: int) -> int:
        """Hand over requests; answers how many were taken, or raises if not even the first was."""
        return self._call("submit", context, count, iocbs)

    def getevents(self, context: int, limit: int, events: int) -> int:
        """Fetch what is done, without waiting; answers how many."""
        no_time = ctypes.create_string_buffer(16)
        return self._call("getevents", context, 0, limit, events, ctypes.addressof(no_time))

    def _call(self, name: str, *args: int) -> int:
        answer = self._syscall(self._numbers[name], *args)
        if answer < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return answer


@lru_cache(maxsize=1)
def host_calls() -> AioCalls | None:
    """The calls of this host, or None where we do not know them."""
    numbers = _CALLS.get(platform.machine())
    if sys.platform != "linux" or numbers is None or sys.maxsize < 1 << 32 or not NOWAIT:
        return None
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    syscall.argtypes = (ctypes.c_long,) * 6
    return AioCalls(lambda *args: int(syscall(*args, *(0,) * (6 - len(args)))), numbers)


class _Memory:
    """Zeroed memory that begins on a page."""

    def __init__(self, length: int) -> None:
        self._map = mmap.mmap(-1, length)
        self.view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))


class NativeAio:
    """Requests on one descriptor; takes nothing where the host has no native AIO.

    Args:
        fd: open with ``O_DIRECT``; stays the caller's.
        loop: where completions are delivered.
        done: called with what the kernel has let go of. A transfer that was not carried out has
            ``refused`` set.
        calls: the host's, or None if it has none.
    """

    def __init__(
        self, fd: int, loop: asyncio.AbstractEventLoop, done: Done, calls: AioCalls | None
    ) -> None:
        self._fd = fd
        self._loop = loop
        self._done = done
        self._calls = calls
        self._free = list(range(SLOTS))
        self._flying: dict[int, tuple[Transfer, int]] = {}  # slot -> what it is for, and how
        self._context: int | None = None
        self._eventfd = -1
        self._idle: Settled | None = None
        self.active = False  # whether it takes anything
        self.writing = 0  # writes with the kernel
        if calls is not None:
            self._open(calls)

    def _open(self, calls: AioCalls) -> None:
        try:
            self._data = _Memory(SLOTS * LONGEST)
            self._iocbs = _Memory(SLOTS * _IOCB.size)
            self._events = _Memory(SLOTS * _EVENT.size)
            self._pointers = (ctypes.c_uint64 * SLOTS)()
            self._context = calls.setup()
            self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._lay_out()
        except OSError:  # AIO is not for us, or used up by others (/proc/sys/fs/aio-max-nr)
            self.release()
            return
        self._loop.add_reader(self._eventfd, self._reap)
        self.active = True

    def _lay_out(self) -> None:
        """Fill in what is the same in all requests of a slot."""
        for slot in range(SLOTS):
            address = self._data.address + slot * LONGEST
            fields = (slot, 0, NOWAIT, 0, 0, self._fd, address, 0, 0, 0, _WITH_EVENTFD)
            _IOCB.pack_into(self._iocbs.view, slot * _IOCB.size, *fields, self._eventfd)
        self._kinds = self._iocbs.view.cast("H")
        self._words = self._iocbs.view.cast("Q")

    def start_reads(self, reads: Sequence[Transfer]) -> list[Transfer]:
        """Hand reads to the kernel; answers those that it does not take."""
        return self._start(reads, _PREAD)

    def start_writes(self, writes: Sequence[Transfer]) -> list[Transfer]:
        """Hand aligned writes inside the file to the kernel; answers those it does not take."""
        return self._start(writes, _PWRITE)

    def _start(self, transfers: Sequence[Transfer], opcode: int) -> list[Transfer]:
        if not self.active:
            return list(transfers)
        left: list[Transfer] = []
        ready: list[int] = []
        for transfer in transfers:
            slot = self._prepare(transfer, opcode)
            if slot is None:
                left.append(transfer)
            else:
                ready.append(slot)
        if ready:
            left += [self._land(slot)[0] for slot in ready[self._submit(ready) :]]
        return left

    def _prepare(self, transfer: Transfer, opcode: int) -> int | None:
        """Lay out a request in a free slot; None if this is not the way for it."""
        skip = transfer.offset % ALIGNMENT
        span = round_up(skip + transfer.length)
        if not 0 < span <= LONGEST or not 0 <= transfer.offset < _MAX_OFFSET:
            return None
        if transfer.refused or not self._free:
            return None
        slot = self._free.pop()
        where = slot * LONGEST
        if opcode == _PWRITE:
            try:
                gather(transfer.buffers, self._data.view[where : where + span])
            except (TypeError, ValueError):
                self._free.append(slot)
                return None
            self.writing += 1
        self._kinds[slot * 32 + 8] = opcode
        self._words[slot * 8 + 4] = span
        self._words[slot * 8 + 5] = transfer.offset - skip
        self._flying[slot] = transfer, opcode
        return slot

    def _submit(self, slots: Sequence[int]) -> int:
        """Hand requests over; answers how many of them the kernel has."""
        assert self._calls is not None
        assert self._context is not None
        count, first = len(slots), self._iocbs.address
        self._pointers[:count] = [first + slot * _IOCB.size for slot in slots]
        try:
            return self._calls.submit(self._context, count, ctypes.addressof(self._pointers))
        except OSError as error:
            self.active = error.errno not in _USELESS
            return 0

    def _land(self, slot: int) -> tuple[Transfer, int]:
        """The slot is free again; answers what it was for."""
        transfer, opcode = self._flying.pop(slot)
        self._free.append(slot)
        self.writing -= opcode == _PWRITE
        return transfer, opcode

    def _reap(self) -> None:
        """The eventfd has fired: see what is done."""
        assert self._calls is not None
        assert self._context is not None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        try:
            count = self._calls.getevents(self._context, SLOTS, self._events.address)
        except InterruptedError:  # there was nothing
            return
        ended: tuple[list[Transfer], list[Transfer]] = ([], [])
        for slot, _, result, _ in _EVENT.iter_unpack(self._events.view[: count * _EVENT.size]):
            transfer, opcode = self._land(slot)
            transfer.refused = not self._carried_out(slot, transfer, opcode, result)
            ended[opcode].append(transfer)
        self._done(*ended)
        if not self._flying and self._idle is not None:
            self._idle.finish()

    def _carried_out(self, slot: int, transfer: Transfer, opcode: int, result: int) -> bool:
        """Whether all of it was done; a read's bytes go to where they are wanted."""
        if opcode == _PWRITE:
            return result == transfer.length
        skip = transfer.offset % ALIGNMENT
        if result < skip + transfer.length:
            return False
        start = slot * LONGEST + skip
        try:
            scatter(self._data.view[start : start + transfer.length], transfer.buffers)
        except (TypeError, ValueError):
            return False
        return True

    async def drain(self) -> None:
        """Wait until the kernel has nothing.

        Cancellation: runs to the end.
        """
        if self._flying:
            self._idle = Settled(self._loop)
            await self._idle.wait()

    def stop(self) -> None:
        """Take nothing from here on; nothing may be with the kernel. Idempotent."""
        self.active = False
        if self._eventfd >= 0:
            self._loop.remove_reader(self._eventfd)
            os.close(self._eventfd)
            self._eventfd = -1
            del self._data, self._iocbs, self._events, self._kinds, self._words

    def release(self) -> None:
        """After :meth:`stop`, give the kernel's part back; blocks. Idempotent."""
        context, self._context = self._context, None
        if context is not None and self._calls is not None:
            self._calls.destroy(context)
