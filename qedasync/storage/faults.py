"""A storage that misbehaves on demand: fails, tears, delays, pauses or cancels chosen calls.

Every call is written down and counted, and each write of a list is a call of its own, so a test
names the exact step that it wants to break: by kind, event and number. What a rule does happens
before the wrapped storage is touched, unless it says "after": a call that is cancelled while it is
delayed or paused has not started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from errno import EIO
from typing import Literal, TypeAlias, TypeVar

from qedasync.errors import StorageError, storage_error
from qedasync.events import Event
from qedasync.storage.base import ReadBuffers, Storage, StorageBase, Write, WriteBuffers

__all__ = [
    "FaultStorage",
    "Fault",
    "Call",
    "Action",
    "Op",
    "SECTOR",
    "sector_count",
    "sector_range",
]

T = TypeVar("T")

SECTOR = 512
"""Bytes that a disk writes whole or not at all."""

Op: TypeAlias = Literal["read", "write", "write_zeroes", "flush", "truncate", "next_data", "close"]

Action: TypeAlias = Literal["error", "error-after", "short", "torn", "delay", "pause", "cancel"]

_APPLIES: dict[Action, frozenset[Op]] = {
    "short": frozenset({"read", "write", "write_zeroes"}),
    "torn": frozenset({"write", "write_zeroes"}),
}

_Part: TypeAlias = Callable[[int, int], Awaitable[None]]
"""Transfers the bytes [start, stop) of a call and leaves the others."""


def sector_count(offset: int, length: int) -> int:
    """How many sectors ``[offset, offset + length)`` touches."""
    return -(-(offset + length) // SECTOR) - offset // SECTOR if length else 0


def sector_range(offset: int, length: int, first: int, stop: int) -> tuple[int, int]:
    """The bytes of a transfer that lie in its sectors ``[first, stop)``, counted from its start."""
    skip = offset % SECTOR
    return max(0, first * SECTOR - skip), min(length, stop * SECTOR - skip)


@dataclass(slots=True, frozen=True)
class Call:
    """One call of a storage.

    Attributes:
        op: which method; ``try_read_into`` and ``read_into`` are both a ``"read"``.
        event: why; None where the method has no event.
        offset: place in bytes; the new size for ``"truncate"``; None where there is none.
        length: bytes; None where there are none.
    """

    op: Op
    event: Event | None = None
    offset: int | None = None
    length: int | None = None


@dataclass(slots=True, frozen=True)
class Fault:
    """A rule: what to do to which calls.

    Attributes:
        action: ``"error"``: raise, nothing was done. ``"error-after"``: done, then raise.
            ``"short"``: only the first ``keep`` bytes are transferred, then raise.
            ``"torn"``: only some ``sectors`` of the write reach the file, then raise.
            ``"delay"``: wait ``turns`` turns of the loop, or ``seconds``, then go on.
            ``"pause"``: wait for :meth:`FaultStorage.resume`, then go on.
            ``"cancel"``: call ``callback`` (a task's ``cancel``), then go on: the cancellation
            arrives where the call next suspends.
        event, op: which calls match; None matches all. ``"short"`` matches transfers only,
            ``"torn"`` writes only.
        call: act on the n-th matching call, counted from when the rule was added; the first is 1.
        once: forget the rule then; otherwise every later matching call is hit too.
        errno: the host's error number to raise.
        keep: for ``"short"``; half of the bytes if None.
        sectors: for ``"torn"``: numbers of the 512-byte sectors that reach the file, from 0 on;
            every other one, beginning with the first, if None.
        turns, seconds: for ``"delay"``.
        callback: for ``"cancel"``.
    """

    action: Action
    _: KW_ONLY
    event: Event | None = None
    op: Op | None = None
    call: int = 1
    once: bool = True
    errno: int = EIO
    keep: int | None = None
    sectors: Collection[int] | None = None
    turns: int = 1
    seconds: float | None = None
    callback: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        if self.call < 1:
            raise ValueError("calls are counted from 1")
        if (self.action == "cancel") != (self.callback is not None):
            raise ValueError("a callback goes with the action 'cancel', and only with it")

    @property
    def fails(self) -> bool:
        """Whether the call ends with an error."""
        return self.action not in ("delay", "pause", "cancel")

    def matches(self, op: Op, event: Event | None) -> bool:
        """Whether such a call counts for this rule."""
        return (
            self.op in (None, op)
            and self.event in (None, event)
            and (self.action not in _APPLIES or op in _APPLIES[self.action])
        )

    def parts(self, call: Call) -> Iterator[tuple[int, int]]:
        """Which bytes [start, stop) of the failing call are transferred nevertheless."""
        offset, length = call.offset or 0, call.length or 0
        if self.action == "short":
            yield 0, min(length, length // 2 if self.keep is None else self.keep)
        elif self.action == "torn":
            count = sector_count(offset, length)
            for sector in range(0, count, 2) if self.sectors is None else self.sectors:
                if 0 <= sector < count:
                    yield sector_range(offset, length, sector, sector + 1)


@dataclass(slots=True, eq=False)
class _Rule:
    fault: Fault
    seen: int = 0

    def hit(self) -> bool:
        self.seen += 1
        return self.seen >= self.fault.call


class FaultStorage(StorageBase):
    """A wrapper that applies :class:`Fault` rules to the calls on their way to ``inner``.

    Where several rules hit one call, the waits come first, in the order the rules were added, and
    the first failing rule decides how the call ends.

    Args:
        inner: the storage to wrap; closed with the wrapper.
        faults: rules from the start; :meth:`add` brings more.
        inline: whether ``try_read_into`` may answer True; it never does while a rule could match.
        sleep: waits a number of seconds.

    Attributes:
        calls: every call so far, in order; a read that "would block" is there once.
        fired: the rules that acted, in order.
    """

    def __init__(
        self,
        inner: Storage,
        *faults: Fault,
        inline: bool = True,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.inner = inner
        self.zero_fills = inner.zero_fills
        self.calls: list[Call] = []
        self.fired: list[Fault] = []
        self._rules = [_Rule(fault) for fault in faults]
        self._inline = inline
        self._sleep = sleep
        self._gate = _Gate()

    def add(self, *faults: Fault) -> None:
        """Add rules; they count calls from now on."""
        self._rules += map(_Rule, faults)

    def clear(self) -> None:
        """Forget all rules; calls that are held stay held."""
        self._rules.clear()

    def count(self, op: Op | None = None, event: Event | None = None) -> int:
        """How many calls there were, of one kind or event if given."""
        return sum(op in (None, call.op) and event in (None, call.event) for call in self.calls)

    async def wait_paused(self, count: int = 1) -> None:
        """Wait until ``count`` calls are held by ``"pause"`` rules."""
        await self._gate.wait_held(count)

    def resume(self) -> None:
        """Let all held calls go on."""
        self._gate.release()

    @property
    def size(self) -> int:
        return self.inner.size

    def try_read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> bool:
        if not self._inline or any(rule.fault.matches("read", event) for rule in self._rules):
            return False
        if not self.inner.try_read_into(buffers, offset, event):
            return False  # read_into follows, and is the call that counts
        self.calls.append(Call("read", event, offset, sum(map(len, buffers))))
        return True

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        await self._run(
            Call("read", event, offset, sum(map(len, buffers))),
            lambda: self.inner.read_into(buffers, offset, event),
            lambda start, stop: self.inner.read_into(
                _cut(buffers, start, stop), offset + start, event
            ),
        )

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        await self._run(
            Call("write", event, offset, sum(map(len, buffers))),
            lambda: self.inner.write(buffers, offset, event),
            lambda start, stop: self.inner.write(_cut(buffers, start, stop), offset + start, event),
        )

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        if grow_to > self.size:
            await self._run(
                Call("truncate", Event.CLUSTER_ALLOC, grow_to),
                # Not a truncate: the file may have become longer while a rule held the call.
                lambda: self.inner.write_many((), grow_to=grow_to),
            )
        await super().write_many(writes)

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        await self._run(
            Call("write_zeroes", event, offset, length),
            lambda: self.inner.write_zeroes(offset, length, event),
            lambda start, stop: self.inner.write_zeroes(offset + start, stop - start, event),
        )

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        await self._run(Call("flush", event), lambda: self.inner.flush(event))

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        await self._run(Call("truncate", event, size), lambda: self.inner.truncate(size, event))

    async def next_data(self, offset: int) -> int:
        return await self._run(
            Call("next_data", None, offset), lambda: self.inner.next_data(offset)
        )

    async def close(self) -> None:
        await self._run(Call("close"), self.inner.close)

    async def _run(
        self, call: Call, whole: Callable[[], Awaitable[T]], part: _Part | None = None
    ) -> T:
        """Do the call as the rules want it.

        Cancellation: as ``inner`` has it, and while a rule holds the call, before it has started.
        """
        self.calls.append(call)
        fired = self._fire(call)
        for fault in fired:
            await self._hold(fault)
        failing = next((fault for fault in fired if fault.fails), None)
        if failing is None:
            return await whole()
        if failing.action == "error-after":
            await whole()
        elif part is not None:
            for start, stop in failing.parts(call):
                await part(start, stop)
        raise _error(failing, call)

    def _fire(self, call: Call) -> list[Fault]:
        """The rules that act on this call; counts it for all that match."""
        matching = [rule for rule in self._rules if rule.fault.matches(call.op, call.event)]
        hitting = [rule for rule in matching if rule.hit()]
        self._rules = [r for r in self._rules if r not in hitting or not r.fault.once]
        fired = [rule.fault for rule in hitting]
        self.fired += fired
        return fired

    async def _hold(self, fault: Fault) -> None:
        match fault.action:
            case "pause":
                await self._gate.hold()
            case "delay" if fault.seconds is not None:
                await self._sleep(fault.seconds)
            case "delay":
                for _ in range(fault.turns):
                    await asyncio.sleep(0)
            case "cancel" if fault.callback is not None:
                fault.callback()


@dataclass(slots=True, eq=False)
class _Gate:
    """Where paused calls wait, and where a test waits for them."""

    _held: list[asyncio.Future[None]] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def hold(self) -> None:
        here = asyncio.get_running_loop().create_future()
        self._held.append(here)
        self._arrived.set()
        try:
            await here
        finally:
            if here in self._held:
                self._held.remove(here)

    async def wait_held(self, count: int) -> None:
        while len(self._held) < count:
            self._arrived.clear()
            await self._arrived.wait()

    def release(self) -> None:
        held, self._held = self._held, []
        for here in held:
            if not here.done():
                here.set_result(None)


def _cut(buffers: ReadBuffers | WriteBuffers, start: int, stop: int) -> list[memoryview]:
    """The bytes [start, stop) of buffers laid end to end, without a copy."""
    pieces = []
    for buffer in buffers:
        pieces.append(memoryview(buffer)[max(0, start) : max(0, stop)])
        start, stop = start - len(buffer), stop - len(buffer)
    return [piece for piece in pieces if piece]


def _error(fault: Fault, call: Call) -> StorageError:
    return storage_error(fault.errno, offset=call.offset, length=call.length)
