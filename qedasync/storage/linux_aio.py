"""Linux's native AIO as a queue of requests: a context, and an eventfd that tells of completions.

What hosts have that forbid io_uring, as containers often do. For ``O_DIRECT`` only: with any other
descriptor handing a request over does all of it. Requests carry ``RWF_NOWAIT``, so handing them
over does not hold up the loop; what would, is refused.

Source: include/uapi/linux/aio_abi.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from qedasync.storage.host import NOWAIT
from qedasync.storage.queue import SLOTS, Layout
from qedasync.storage.syscalls import Memory, SystemCall, system_call

__all__ = ["AioCalls", "AioQueue", "host_calls"]

_CALLS = {
    "x86_64": {"setup": 206, "destroy": 207, "getevents": 208, "submit": 209},
    "aarch64": {"setup": 0, "destroy": 1, "submit": 2, "getevents": 4},
}
_IOCB = struct.Struct("<QIIHhIQQqQII")
"""data, key, rw_flags; opcode, priority, descriptor; address, bytes, offset; 0, flags, eventfd."""
_EVENT = struct.Struct("<QQqq")
"""data, iocb, result, second result."""
_PREAD, _PWRITE = 0, 1
_WITH_EVENTFD = 1
_SPARE_CONTEXTS = 8


class AioCalls:
    """The system calls.

    Args:
        call: makes one.
        numbers: of the calls, by name.
    """

    def __init__(self, call: SystemCall, numbers: dict[str, int]) -> None:
        self._call = call
        self._numbers = numbers
        self._spare: list[int] = []
        os.register_at_fork(after_in_child=self._spare.clear)  # a child has none of them

    def setup(self) -> int:
        """A context for :data:`~qedasync.storage.queue.SLOTS` requests."""
        with contextlib.suppress(IndexError):
            return self._spare.pop()
        context = ctypes.c_ulong(0)
        self._call(self._numbers["setup"], SLOTS, ctypes.addressof(context))
        return context.value

    def destroy(self, context: int) -> None:
        """Give back a context with no request in it; blocks.

        The kernel takes tens of milliseconds, so a few are kept for the next files.
        """
        if len(self._spare) < _SPARE_CONTEXTS:
            self._spare.append(context)
        else:
            self._call(self._numbers["destroy"], context)

    def submit(self, context: int, count: int, iocbs: int) -> int:
        """Hand over requests; answers how many were taken, or raises if not even the first was."""
        return self._call(self._numbers["submit"], context, count, iocbs)

    def getevents(self, context: int, limit: int, events: int) -> int:
        """Fetch what is done, without waiting; answers how many."""
        no_time = ctypes.create_string_buffer(16)
        address = ctypes.addressof(no_time)
        return self._call(self._numbers["getevents"], context, 0, limit, events, address)


@lru_cache(maxsize=1)
def host_calls() -> AioCalls | None:
    """The calls of this host, or None where we do not know them."""
    call, numbers = system_call(), _CALLS.get(platform.machine())
    return AioCalls(call, numbers) if call and numbers and NOWAIT else None


class AioQueue:
    """A context and its requests. Implements :class:`~qedasync.storage.queue.Queue`.

    Args:
        fd: what is read and written; stays the caller's.
        data: where the kernel puts and finds bytes.
        longest: bytes of ``data`` for each slot.
        calls: the host's.

    Raises:
        OSError: AIO is not for us, or used up by others (/proc/sys/fs/aio-max-nr).
    """

    def __init__(self, fd: int, data: Memory, longest: int, calls: AioCalls) -> None:
        self._calls = calls
        self._iocbs = Memory(SLOTS * _IOCB.size)
        self._events = Memory(SLOTS * _EVENT.size)
        self._pointers = (ctypes.c_uint64 * SLOTS)()
        self._context: int | None = calls.setup()
        try:
            self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            self.close()
            raise
        for slot in range(SLOTS):
            address = data.address + slot * longest
            fields = (slot, 0, NOWAIT, 0, 0, fd, address, 0, 0, 0, _WITH_EVENTFD, self.eventfd)
            _IOCB.pack_into(self._iocbs.view, slot * _IOCB.size, *fields)
        self.words = self._iocbs.view.cast("Q")
        self.layout = Layout(2, _PREAD | fd << 32, _PWRITE | fd << 32, length=4, offset=5)

    def submit(self, slots: Sequence[int]) -> int:
        assert self._context is not None
        count, first = len(slots), self._iocbs.address
        self._pointers[:count] = [first + slot * _IOCB.size for slot in slots]
        return self._calls.submit(self._context, count, ctypes.addressof(self._pointers))

    def completed(self) -> Iterable[tuple[int, int]]:
        assert self._context is not None
        try:
            count = self._calls.getevents(self._context, SLOTS, self._events.address)
        except InterruptedError:  # there was nothing
            return ()
        done = _EVENT.iter_unpack(self._events.view[: count * _EVENT.size])
        return [(slot, result) for slot, _, result, _ in done]

    def close(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            self._calls.destroy(context)
