"""How much may finish inline before the event loop gets a turn.

A request that finishes inline never suspends, so nobody else on the loop runs meanwhile. The budget
counts such requests. A task that meets the limit pauses: it queues here, and a few of those who
wait, the longest first, are woken in the next turn of the loop, each with its share of the budget.
So a turn costs about the same however many tasks there are. Only a few, because a pause costs as
much as a request does: of 64 tasks with a 64th of the budget each, every third request would pause.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

__all__ = ["INLINE_REQUESTS", "SMALL", "WOKEN", "Budget"]

INLINE_REQUESTS = 256
"""Small requests that may finish inline in one turn of the loop, of all tasks together."""

SMALL = 32 << 10
"""Bytes; a longer request counts as several."""

WOKEN = 16
"""Tasks that come back from a pause in one turn of the loop."""


class Budget:
    """Counts inline requests; one for each image, on one event loop.

    Attributes:
        reads: reads that finished inline, ever.
        limit: how far that may go before the running task must pause. Whoever does something else,
            or more than a small read, takes that off here.
        pauses: times a task has paused.
    """

    __slots__ = ("_loop", "_paused", "_share", "_shut", "_turn_due", "limit", "pauses", "reads")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reads = 0
        self.limit = INLINE_REQUESTS
        self.pauses = 0
        self._loop = loop
        self._share = 1
        self._shut = False
        self._turn_due = False
        self._paused: deque[asyncio.Future[None]] = deque()

    @property
    def used_up(self) -> bool:
        """Whether the running task must pause before it may finish anything inline."""
        return self.reads >= self.limit and not self._shut

    async def pause(self) -> None:
        """Give the loop a turn, and come back with this task's share of the budget.

        Cancellation: at once.
        """
        waiter = self._loop.create_future()
        self._paused.append(waiter)
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._begin_turn)
        await waiter
        self.pauses += 1
        if not self._shut:
            self.limit = self.reads + self._share

    def renew_soon(self) -> None:
        """In the next turn of the loop the budget is whole again, if nobody waits for a share.

        For callbacks of the loop, which cannot pause and have no need to: they come once a turn.
        """
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        paused = self._paused
        if not paused:
            self._turn_due = False
            if not self._shut:
                self.limit = self.reads + INLINE_REQUESTS
            return
        count = min(len(paused), WOKEN)
        self._share = INLINE_REQUESTS // count
        for _ in range(count):
            waiter = paused.popleft()
            if not waiter.done():
                waiter.set_result(None)
        self._loop.call_soon(self._begin_turn)  # behind those who were woken

    def charge(self, length: int) -> None:
        """A request of ``length`` bytes ended that did not finish inline."""
        self.limit -= 1 + length // SMALL

    def shut(self) -> None:
        """Nothing finishes inline until :meth:`open`."""
        self._shut = True
        self.limit = -1

    def open(self) -> None:
        """The opposite of :meth:`shut`; the running task has to pause first."""
        self._shut = False
        self.limit = self.reads
