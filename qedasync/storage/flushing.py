"""One ``fdatasync`` for everybody who asks for it meanwhile."""

from __future__ import annotations

import asyncio
from functools import partial

from qedasync.storage.host import datasync
from qedasync.storage.workers import Workers
from qedasync.waiting import Settled

__all__ = ["Flusher"]


class Flusher:
    """Makes what was written to a descriptor durable; on threads, one flush at a time.

    Args:
        fd: stays the caller's.
        loop: where completions are delivered.
        workers: threads.

    Attributes:
        unsynced: whether anything has been written that no flush has covered; set by who writes.
    """

    __slots__ = ("_current", "_fd", "_loop", "_next", "_workers", "unsynced")

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, workers: Workers) -> None:
        self.unsynced = False
        self._fd = fd
        self._loop = loop
        self._workers = workers
        self._current: _Flush | None = None
        self._next: _Flush | None = None

    async def flush(self) -> None:
        """Return when every write that returned before this call is durable.

        Raises:
            OSError: the host could not; what was written counts as unsynced again.

        Cancellation: runs to the end.
        """
        if self._next is not None:
            flush = self._next
        elif self.unsynced:
            flush = self._next = _Flush()
            self._loop.call_soon(self.begin)  # who writes in this turn shares it
        elif self._current is not None:
            flush = self._current  # it began after everything that was acknowledged
        else:
            return
        waiter = Settled(self._loop)
        flush.waiters.append(waiter)
        await waiter.wait()
        if flush.error is not None:
            raise flush.error

    def begin(self) -> None:
        """Hand the waiting flush, if any, to a thread, unless another is on its way."""
        if self._next is None or self._current is not None:
            return
        flush, self._next = self._next, None
        self._current = flush
        self.unsynced = False
        self._workers.submit(partial(flush.run, self._fd), self._done)

    def _done(self) -> None:
        flush, self._current = self._current, None
        assert flush is not None
        if flush.error is not None:
            self.unsynced = True
        self.begin()
        for waiter in flush.waiters:
            waiter.finish()


class _Flush:
    """One ``fdatasync`` and everybody who waits for it."""

    __slots__ = ("error", "waiters")

    def __init__(self) -> None:
        self.waiters: list[Settled] = []
        self.error: OSError | None = None

    def run(self, fd: int) -> None:
        try:
            datasync(fd)
        except OSError as error:
            self.error = error
