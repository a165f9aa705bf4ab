"""Threads that make blocking calls for one event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from qedasync.waiting import Settled

__all__ = ["Job", "Workers", "in_thread"]

T = TypeVar("T")
_Task = Callable[[], None]


class Job(Settled, Generic[T]):
    """A function that runs on a worker; its result or error is kept for the waiter."""

    __slots__ = ("error", "function", "value")

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], T]) -> None:
        super().__init__(loop)
        self.function = function
        self.value: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """On the worker: call the function and keep what comes."""
        try:
            self.value = self.function()
        except BaseException as error:
            self.error = error


class Workers:
    """Up to ``limit`` threads for one event loop, started when first needed.

    Args:
        loop: where completions are delivered.
        limit: threads at most.
        name: prefix of the threads' names.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int, name: str) -> None:
        self.limit = limit
        self._loop = loop
        self._name = name
        self._queue: SimpleQueue[tuple[_Task, _Task] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._idle: Settled | None = None

    def submit(self, work: _Task, done: _Task) -> None:
        """Run ``work`` on a thread, then ``done`` on the loop. ``work`` must not raise."""
        self._busy += 1
        if self._busy > len(self._threads) < self.limit:
            thread = threading.Thread(
                target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        self._queue.put((work, done))

    async def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` on a thread and give back its result or error.

        Cancellation: the call runs to its end, then ``CancelledError`` is raised.
        """
        job = Job(self._loop, function)
        self.submit(job.run, job.finish)
        await job.wait()
        if job.error is not None:
            raise job.error
        return job.value  # type: ignore[return-value]  # T may itself be None

    async def drain(self) -> None:
        """Wait until nothing runs and no completion has started anything new.

        Cancellation: runs to the end.
        """
        if self._busy:
            self._idle = Settled(self._loop)
            await self._idle.wait()

    def close(self) -> None:
        """End the threads and wait for them; nothing may be running. Idempotent."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            work, done = item
            work()
            try:
                self._loop.call_soon_threadsafe(self._finish, done)
            except RuntimeError:  # the loop was closed under us: nobody is waiting any more
                return
            del item, work, done  # hold no buffer while idle

    def _finish(self, done: _Task) -> None:
        self._busy -= 1
        done()
        if self._busy == 0 and self._idle is not None:
            self._idle.finish()


async def in_thread(function: Callable[[], T]) -> T:
    """Call ``function`` on a thread of its own: for what blocks now and then, outside any storage.

    Cancellation: the call runs to its end, then ``CancelledError`` is raised.
    """
    workers = Workers(asyncio.get_running_loop(), 1, "qedasync-host")
    try:
        return await workers.run(function)
    finally:
        workers.close()
