"""blkdebug: a storage that fails or stops at named steps, as QEMU's driver of that name does.

An event makes the rules for it active, in place of those before. What is active answers every
request that it matches with its error, or one request if it says so.

Events come from three sides. The QED engine says why it touches the file, and QEMU's driver has a
name for most of that. Writes have events of their own, which QEMU's block layer raises whatever
lies above: ``pwritev``, ``pwritev_done`` and their like. So have the guest's flushes: see
:mod:`qedasync.cli.nodes.debugged`.

Differs from QEMU: ``read_backing_aio`` never happens, for the engine reads the backing file without
a word to the image's own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import qedasync
from qedasync import Event
from qedasync.cli.nodes.rules import EVENTS, Inject, Rules
from qedasync.cli.options import ToolError

__all__ = ["BlkdebugStorage"]

_QEMU_NAMES = {
    Event.READ_AIO: "read_aio",
    Event.WRITE_AIO: "write_aio",
    Event.COW_READ: "cow_read",
    Event.COW_WRITE: "cow_write",
    Event.L1_UPDATE: "l1_update",
    Event.L2_LOAD: "l2_load",
    Event.L2_UPDATE: "l2_update",
    Event.L2_ALLOC_WRITE: "l2_update",
    Event.CHECK_LOAD: "l2_load",
}
"""What QEMU's QED driver calls a step, where it has a name for it."""


class BlkdebugStorage(qedasync.StorageBase):
    """A storage over another one, with rules and breakpoints. Owns the other one.

    Attributes:
        under_image: a QED image lies right above. QEMU writes zeroes into a mapped cluster as data.
    """

    # So an image writes all of a new cluster, as QEMU does.
    zero_fills = False

    def __init__(self, inner: qedasync.Storage, rules: Rules) -> None:
        self.under_image = False
        self._inner = inner
        self._inject = list(rules.inject)
        self._changes = rules.changes
        self._align = rules.align
        self._state = 1
        self._active: list[Inject] = []
        self._breaks: list[tuple[str, str]] = []  # (event, tag)
        self._suspended: dict[str, list[asyncio.Future[None]]] = {}
        self._changed = asyncio.Event()
        self._dirty = False
        self._activate("none")

    @property
    def size(self) -> int:
        return self._inner.size

    # ------------------------------------------------------------ breakpoints

    def add_break(self, event: str, tag: str) -> None:
        """Stop the next request that comes to ``event``.

        Raises:
            ToolError: there is no such event.
        """
        if event not in EVENTS:
            raise ToolError(f"Could not set a breakpoint: {os.strerror(2)}")
        self._breaks.append((event, tag))

    def remove_break(self, tag: str) -> bool:
        """Forget the breakpoints of that name, and let go what they hold; were there any?"""
        found = [one for one in self._breaks if one[1] == tag]
        self._breaks = [one for one in self._breaks if one[1] != tag]
        while self.resume(tag):
            found.append(("", tag))
        return bool(found)

    def resume(self, tag: str) -> bool:
        """Let go the request that stopped there last; whether there was one."""
        waiting = self._suspended.get(tag)
        if not waiting:
            return False
        waiter = waiting.pop()
        if not waiter.done():
            waiter.set_result(None)
        return True

    def is_suspended(self, tag: str) -> bool:
        """Whether a request has stopped there."""
        return bool(self._suspended.get(tag))

    async def wait_break(self, tag: str) -> None:
        """Wait until one has."""
        while not self.is_suspended(tag):
            self._changed.clear()
            await self._changed.wait()

    # ------------------------------------------------------------------ rules

    async def happen(self, event: str) -> None:
        """Something has come to an event: rules become active, the state changes, requests stop."""
        state = self._activate(event)
        for one in [one for one in self._breaks if one[0] == event]:
            self._breaks.remove(one)
            await self._stop(one[1])
        if state is not None:
            self._state = state

    def _activate(self, event: str) -> int | None:
        """Make the event's rules active; answers the state to go over to, if any."""
        states = (0, self._state)
        rules = [one for one in self._inject if one.event == event and one.state in states]
        self._active = rules or self._active
        changes = (one for one in self._changes if one.event == event and one.state in states)
        change = next(changes, None)
        return None if change is None else change.new_state

    async def _stop(self, tag: str) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._suspended.setdefault(tag, [])
        waiting.append(waiter)
        print(f"blkdebug: Suspended request '{tag}'")
        self._changed.set()
        try:
            await waiter
        finally:
            if waiter in waiting:
                waiting.remove(waiter)

    async def _check(self, iotype: str, offset: int, length: int) -> None:
        """Raise the error that an active rule has for a request."""
        rule = next((one for one in self._active if one.matches(iotype, offset, length)), None)
        if rule is None or not rule.errno:
            return
        if rule.once:
            self._active = [one for one in self._active if one is not rule]
            self._inject = [one for one in self._inject if one is not rule]
        if not rule.immediately:
            await asyncio.sleep(0)
        raise qedasync.StorageError(rule.errno, offset=offset, length=length)

    # ---------------------------------------------------------------- storage

    async def read_into(
        self, buffers: Sequence[Any], offset: int, event: Event = Event.READ_AIO
    ) -> None:
        if event in _QEMU_NAMES:
            await self.happen(_QEMU_NAMES[event])
        await self._check("read", *self._aligned(offset, sum(map(len, buffers))))
        await self._inner.read_into(buffers, offset, event)

    async def write(
        self, buffers: Sequence[Any], offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        if event in _QEMU_NAMES:
            await self.happen(_QEMU_NAMES[event])
        await self._start_write("write", "pwritev", offset, sum(map(len, buffers)))
        await self._inner.write(buffers, offset, event)
        await self.happen("pwritev_done")

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        if self.under_image:
            await self.happen("write_aio")
            await self._start_write("write", "pwritev", offset, length)
        else:
            await self._start_write("write-zeroes", "pwritev_zero", offset, length)
        await self._inner.write_zeroes(offset, length, event)
        await self.happen("pwritev_done")

    async def _start_write(self, iotype: str, event: str, offset: int, length: int) -> None:
        """What comes before bytes move: what an unaligned write lacks is read first."""
        start, whole = self._aligned(offset, length)
        head = ["head"] if start < offset else []
        tail = ["tail"] if start + whole > offset + length else []
        if whole == self._align:
            await self._read_margins(head + tail, start)
        else:
            await self._read_margins(head, start)
            await self._read_margins(tail, start + whole - self._align)
        await self.happen(event)
        await self._check(iotype, start, whole)
        self._dirty = True

    async def _read_margins(self, sides: list[str], offset: int) -> None:
        """A block of which the request covers a part is read, once for both its ends."""
        if not sides:
            return
        for side in sides:
            await self.happen(f"pwritev_rmw_{side}")
        await self._check("read", offset, self._align)
        for side in sides:
            await self.happen(f"pwritev_rmw_after_{side}")

    def _aligned(self, offset: int, length: int) -> tuple[int, int]:
        """(offset, length) of the request that QEMU makes of one."""
        start = offset // self._align * self._align
        return start, -(-(offset + length) // self._align) * self._align - start

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        if not self._dirty:
            return
        self._dirty = False
        try:
            await self._check("flush", 0, 0)
            await self._inner.flush(event)
        except BaseException:
            self._dirty = True
            raise

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        self._dirty = True
        await self._inner.truncate(size, event)

    async def next_data(self, offset: int) -> int:
        await self._check("block-status", offset, max(0, self.size - offset))
        return await self._inner.next_data(offset)

    async def close(self) -> None:
        for tag in list(self._suspended):
            self.remove_break(tag)
        await self._inner.close()
