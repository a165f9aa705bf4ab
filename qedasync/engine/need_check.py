"""NEED_CHECK: the bit that says "metadata may be inconsistent", and the timer that takes it back.

Set, and durable, before the first L2 write of a busy period; cleared after a quiet time, on close,
and never unless everything it covers has been flushed. An image with a backing file does not use
it: there each group is flushed before its L2 write.

Differs from QEMU (dossier §7.4 step 1, §8): the bit is flushed; a failed flush keeps it; while the
timer works it holds the allocating turn, so a write that comes waits (QEMU aborts).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from qedasync.engine.header_file import HeaderFile
from qedasync.engine.tasks import TaskOwner
from qedasync.errors import QEDError
from qedasync.format.header import Features

__all__ = ["Clock", "LoopClock", "NeedCheck"]


class Clock(Protocol):
    """Time as a parameter, so that tests can move it."""

    def time(self) -> float:
        """Seconds, monotonic."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that long."""
        ...


class LoopClock:
    """The event loop's own time."""

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class NeedCheck:
    """Owns the dirty bit of one image.

    Args:
        header_file: where the bit is.
        flush: makes everything written durable; raises if it cannot.
        turn: the allocating turn; the timer takes it while it works.
        clock: what time it is.
        timeout: quiet seconds before the bit is cleared; 0 or less: only on close.
        in_background: told of an error that nobody waits for.

    Attributes:
        may_clear: false while the image is known or feared to be inconsistent.
    """

    def __init__(
        self,
        header_file: HeaderFile,
        flush: Callable[[], Awaitable[None]],
        turn: asyncio.Lock,
        tasks: TaskOwner,
        clock: Clock,
        timeout: float,
        in_background: Callable[[QEDError], None],
    ) -> None:
        self.may_clear = True
        self._header_file = header_file
        self._flush = flush
        self._turn = turn
        self._tasks = tasks
        self._clock = clock
        self._timeout = timeout
        self._in_background = in_background
        self._deadline = 0.0
        self._timer: asyncio.Task[None] | None = None
        self._durable = self.is_set

    @property
    def is_set(self) -> bool:
        """Whether the bit is set on disk, as far as anybody knows."""
        return self._header_file.header.need_check

    async def set(self) -> None:
        """Make sure that the bit is set and durable.

        Raises:
            StorageError: it could not be written or flushed.

        Locks: the caller holds the allocating turn.
        """
        self._deadline = self._clock.time() + self._timeout  # not quiet now
        if self.is_set and self._durable:
            return
        self._durable = False
        header = self._header_file.header.with_features(set=Features.NEED_CHECK)
        await self._header_file.update(header)
        await self._flush()
        self._durable = True

    async def clear(self) -> None:
        """Flush, then take the bit back. Does nothing while :attr:`may_clear` is false.

        Raises:
            StorageError: the flush or the write failed; the bit stays.

        Locks: the caller holds the allocating turn.
        """
        if not self.is_set or not self.may_clear:
            return
        await self._flush()
        self._durable = False  # even if the write fails: it may have reached the disk
        header = self._header_file.header.with_features(clear=Features.NEED_CHECK)
        await self._header_file.update(header)
        await self._flush()

    # ------------------------------------------------------------------ timer

    def arm(self) -> None:
        """An allocating write has ended and none waits: the quiet time begins anew."""
        if self._timeout <= 0 or not self.is_set:
            return
        self._deadline = self._clock.time() + self._timeout
        if self._timer is None or self._timer.done():
            self._timer = self._tasks.start(self._run_timer(), "need-check timer")

    async def stop(self) -> None:
        """End the timer and wait until it has ended."""
        timer, self._timer = self._timer, None
        self._timeout = 0.0
        if timer is not None:
            timer.cancel()
            await asyncio.wait([timer])

    async def _run_timer(self) -> None:
        while True:
            await self._sleep_until_quiet()
            async with self._turn:
                if self._clock.time() < self._deadline:
                    continue  # somebody allocated while we waited for the turn
                await self._clear_quietly()
                return

    async def _sleep_until_quiet(self) -> None:
        while (rest := self._deadline - self._clock.time()) > 0:
            await self._clock.sleep(rest)

    async def _clear_quietly(self) -> None:
        """An error leaves the bit set, which is safe."""
        try:
            await self.clear()
        except QEDError as error:
            self._in_background(error)
