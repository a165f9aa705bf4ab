"""How a coroutine waits for something that cannot be called back; what is awaited or entered.

A thread keeps its buffer while the kernel has it, and a group of writes that has begun must end
consistently. So a waiter that is cancelled goes on waiting until the thing has settled, and raises
its ``CancelledError`` only then. ``asyncio.shield`` alone would come back at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Ending", "Opening", "Settled", "until_done"]

T = TypeVar("T", bound=AbstractAsyncContextManager[Any])


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


class Ending:
    """One run of a closing coroutine, however often it is asked for, and whoever is cancelled.

    Args:
        close: what is to run once. If its task is cancelled before it begins, as a loop that shuts
            down does, it is started again.
    """

    __slots__ = ("_began", "_close", "_task")

    def __init__(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._close = close
        self._task: asyncio.Task[None] | None = None
        self._began = False

    @property
    def asked_for(self) -> bool:
        """Whether anybody has asked for it."""
        return self._task is not None

    @property
    def done(self) -> bool:
        """Whether it has run to its end."""
        return self._task is not None and self._task.done() and self._began

    async def _run(self) -> None:
        self._began = True
        await self._close()

    async def run(self) -> None:
        """Have it run, or wait for the run that is under way; raises what it raises.

        Cancellation: runs to the end, is raised then.
        """
        cancelled = False
        while self._task is None or not self.done:
            if self._task is None or self._task.done():  # or cancelled before it began
                self._task = asyncio.create_task(self._run(), name="qedasync: close")
            try:
                await asyncio.wait([self._task])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            if not self._task.cancelled():
                self._task.exception()  # heard, though the cancellation is what leaves
            raise asyncio.CancelledError
        self._task.result()


class Opening(Generic[T]):
    """Something being opened: to be awaited, or entered with ``async with``.

    What ``qedasync.open`` and the like give.

    Args:
        start: opens it; what it gives is an async context manager itself.
    """

    def __init__(self, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._start = start
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._start().__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._start()
        return self._opened

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._opened is not None
        await self._opened.__aexit__(kind, error, trace)
