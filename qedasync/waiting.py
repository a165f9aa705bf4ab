"""How a coroutine waits for something that cannot be called back.

A thread keeps its buffer while the kernel has it, and a group of writes that has begun must end
consistently. So a waiter that is cancelled goes on waiting until the thing has settled, and raises
its ``CancelledError`` only then. ``asyncio.shield`` alone would come back at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["Settled", "until_done"]


async def until_done(task: asyncio.Future[Any]) -> None:
    """Wait until ``task`` has ended, however it does; the caller looks at its result.

    Cancellation: runs to the end, is raised then.
    """
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


class Settled:
    """Something that will be done; waiting for it survives cancellation.

    One task waits for one of these. ``finish`` is called on the loop's thread.
    """

    __slots__ = ("done", "loop", "waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.done = False
        self.waiter: asyncio.Future[None] = loop.create_future()

    def finish(self) -> None:
        """Mark done and wake the waiter."""
        self.done = True
        if not self.waiter.done():
            self.waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until done; a cancellation is raised after that, never before.

        Cancellation: runs to the end.
        """
        try:
            await self.waiter
        except asyncio.CancelledError:
            await self.outlast()
            raise

    async def outlast(self) -> None:
        """Wait until done whatever cancellation comes; the caller re-raises its own."""
        while not self.done:
            self.waiter = self.loop.create_future()
            try:
                await self.waiter
            except asyncio.CancelledError:
                continue
