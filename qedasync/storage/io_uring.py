"""io_uring as a queue of requests: two rings shared with the kernel, and an eventfd.

Takes buffered reads as well as direct ones without holding up whoever hands them over.

The race to keep in mind: a ring's ends are words that both sides write, and Python has no memory
barriers. So completions are asked for to be posted only inside our own system calls
(``DEFER_TASKRUN``, Linux 6.1), and the kernel looks at what we wrote only there; a system call is
barrier enough. Older kernels get no ring.

Source: include/uapi/linux/io_uring.h, io_uring_setup(2).
"""

from __future__ import annotations

import array
import os
import struct
from collections.abc import Iterable, Sequence

from qedasync.storage.queue import SLOTS, WORDS, Layout
from qedasync.storage.syscalls import Memory, SystemCall

__all__ = ["RingQueue"]

_SETUP, _ENTER, _REGISTER = 425, 426, 427  # the same on every machine
_SINGLE_ISSUER, _DEFER_TASKRUN = 1 << 12, 1 << 13
_SINGLE_MMAP = 1  # both rings are in one map; Linux 5.4
_GETEVENTS = 1
_REGISTER_EVENTFD = 4
_READ, _WRITE = 22, 23
_RINGS_AT, _REQUESTS_AT = 0, 0x10000000
_PARAMETERS = struct.Struct("<7I12x 10I 10I")
"""Sizes, flags, features; where things are in the submission ring, and in the completion ring."""
_COMPLETION = struct.Struct("<QiI")
"""slot, result, flags."""
_LIMIT = 1 << 32  # the ends of rings count up and wrap


class RingQueue:
    """The rings of one descriptor. Implements :class:`~qedasync.storage.queue.Queue`.

    To be used on the thread that made it.

    Args:
        fd: what is read and written; stays the caller's.
        data: where the kernel puts and finds bytes.
        longest: bytes of ``data`` for each slot.
        call: makes system calls.

    Raises:
        OSError: the host has no io_uring, or does not let us have it, or it is too old.
    """

    def __init__(self, fd: int, data: Memory, longest: int, call: SystemCall) -> None:
        self._call = call
        parameters = bytearray(_PARAMETERS.size)
        struct.pack_into("<I", parameters, 8, _SINGLE_ISSUER | _DEFER_TASKRUN)
        block = array.array("B", parameters)
        self._ring = call(_SETUP, SLOTS, block.buffer_info()[0])
        self.eventfd = -1
        try:
            self._lay_out(_PARAMETERS.unpack(block), fd, data.address, longest)
            self._tell_by_eventfd()
        except BaseException:
            if self.eventfd >= 0:
                os.close(self.eventfd)
            self.close()
            raise

    def _lay_out(self, found: tuple[int, ...], fd: int, address: int, longest: int) -> None:
        entries, completions, features = found[0], found[1], found[5]
        sent, done = found[7:17], found[17:27]
        if not features & _SINGLE_MMAP or entries != SLOTS:
            raise OSError("This io_uring is not what we know")
        length = max(sent[6] + 4 * entries, done[5] + _COMPLETION.size * completions)
        rings = Memory(-(-length // 8) * 8, self._ring, _RINGS_AT)
        self._rings = rings.view
        self._ends = rings.view.cast("I")
        self._sent_tail = sent[1] // 4
        self._order = sent[6] // 4  # which slots are submitted, by position in the ring
        self._done_head, self._done_tail = done[0] // 4, done[1] // 4
        self._done_mask = completions - 1
        self._done_at = done[5]
        self.words = Memory(SLOTS * WORDS * 8, self._ring, _REQUESTS_AT).view.cast("Q")
        for slot in range(SLOTS):
            self.words[slot * WORDS + 2] = address + slot * longest
            self.words[slot * WORDS + 4] = slot
        self.layout = Layout(0, _READ | fd << 32, _WRITE | fd << 32, length=3, offset=1)

    def _tell_by_eventfd(self) -> None:
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        where = array.array("i", [self.eventfd])
        self._call(_REGISTER, self._ring, _REGISTER_EVENTFD, where.buffer_info()[0], 1)

    def submit(self, slots: Sequence[int]) -> int:
        ends, order = self._ends, self._order
        tail = begin = ends[self._sent_tail]
        for slot in slots:
            ends[order + tail % SLOTS] = slot
            tail += 1
        ends[self._sent_tail] = tail % _LIMIT
        taken = 0
        try:
            taken = self._call(_ENTER, self._ring, len(slots), 0, _GETEVENTS)
        finally:
            ends[self._sent_tail] = (begin + taken) % _LIMIT  # the others are not to be taken later
        return taken

    def completed(self) -> Iterable[tuple[int, int]]:
        self._call(_ENTER, self._ring, 0, 0, _GETEVENTS)
        ends, rings = self._ends, self._rings
        head, tail = ends[self._done_head], ends[self._done_tail]
        done: list[tuple[int, int]] = []
        while head != tail:
            where = self._done_at + _COMPLETION.size * (head & self._done_mask)
            slot, result, _ = _COMPLETION.unpack_from(rings, where)
            done.append((slot, result))
            head = (head + 1) % _LIMIT
        ends[self._done_head] = head
        return done

    def close(self) -> None:
        ring, self._ring = self._ring, -1
        if ring >= 0:
            os.close(ring)
            self.words = self._rings = self._ends = memoryview(b"")  # maps hold the rings open
