"""Who is inside: counts requests in flight, and shuts the door for a close or a repair.

Reads that finish inline do not pass here: they never suspend, so nothing can happen around them.
"""

from __future__ import annotations

import asyncio
from collections import deque

from qedasync.waiting import Settled

__all__ = ["Gate"]


class Gate:
    """A door that many pass, until one shuts it and waits for the last to leave."""

    def __init__(self) -> None:
        self.inside = 0
        self.shut = False
        self._loop = asyncio.get_running_loop()
        self._outside: deque[asyncio.Future[None]] = deque()
        self._emptied: Settled | None = None

    def leave(self) -> None:
        """One request ends. Entering is ``gate.inside += 1`` where ``gate.shut`` is false."""
        self.inside -= 1
        if self.inside == 0 and self._emptied is not None:
            self._emptied.finish()

    async def opened(self) -> None:
        """Wait until the door is open; the caller looks again before it enters."""
        while self.shut:
            waiter = self._loop.create_future()
            self._outside.append(waiter)
            await waiter

    async def close(self) -> None:
        """Shut the door and wait until everybody has left.

        Cancellation: runs to the end, and leaves the door shut.
        """
        self.shut = True
        if self.inside:
            self._emptied = Settled(self._loop)
            await self._emptied.wait()

    def open(self) -> None:
        """Let the waiting in."""
        self.shut = False
        self._emptied = None
        while self._outside:
            waiter = self._outside.popleft()
            if not waiter.done():
                waiter.set_result(None)
