"""Threads that work through a list beside the event loop.

A piece of a copy is a read, a look for zeroes and a write, each less than a millisecond. To go back
to the loop after each costs as much again, and there a second processor is of no use.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Crew", "in_thread"]

T = TypeVar("T")

_THREADS = 2  # one reads while another writes; more only wait for the file's lock
_TICK = 0.05  # seconds


class Crew(Generic[T]):
    """Does the same with each item of lists. Use as ``with``; the threads end with it.

    Args:
        work: called with the item on some thread; an item goes to one thread, and they begin in the
            order of the list. Answers whether to go on; an ``OSError`` means no.
        tasks: threads at most.
    """

    def __init__(self, work: Callable[[T], bool], tasks: int) -> None:
        self._work = work
        self._threads = min(tasks, _THREADS)
        self._items: deque[T] = deque()
        self._undone: list[T] = []
        self._stop = False
        self._pool = ThreadPoolExecutor(self._threads, "qedasync-job")

    def __enter__(self) -> Crew[T]:
        return self

    def __exit__(self, *details: object) -> None:
        self._pool.shutdown()

    async def do(self, items: Sequence[T], tick: Callable[[int], None]) -> list[T]:
        """Work through ``items``.

        Args:
            tick: called on the loop now and then with how many have not been begun.

        Returns: those that were not done, if the work failed or said no at some: these, and those
            that had not been begun. The list is in no order.

        Cancellation: begins no more items, and waits for those that have begun.
        """
        self._items = deque(items)
        self._undone = []
        self._stop = False
        loop = asyncio.get_running_loop()
        threads = {loop.run_in_executor(self._pool, self._serve) for _ in range(self._threads)}
        try:
            await self._watch(threads, tick)
        finally:
            self._stop = True
            await _all_ended(threads)
        return [*self._undone, *self._items]

    async def _watch(self, threads: set[asyncio.Future[None]], tick: Callable[[int], None]) -> None:
        pending = threads
        while pending:
            done, pending = await asyncio.wait(pending, timeout=_TICK)
            for thread in done:
                thread.result()
            tick(len(self._items))

    def _serve(self) -> None:
        while not self._stop:
            try:
                item = self._items.popleft()
            except IndexError:
                return
            goes_on = False
            try:
                goes_on = self._work(item)
            except OSError:
                pass
            finally:
                if not goes_on:
                    self._undone.append(item)
                    self._stop = True


async def in_thread(function: Callable[[], T]) -> T:
    """Call ``function``, which blocks, on a thread of its own.

    Cancellation: the call runs to its end, then it is raised.
    """
    with ThreadPoolExecutor(1, "qedasync-job") as pool:
        call = asyncio.get_running_loop().run_in_executor(pool, function)
        await _all_ended({call})
        return call.result()


async def _all_ended(threads: set[asyncio.Future[T]]) -> None:
    """Wait for the threads whatever happens; a cancellation is raised after that."""
    cancelled = False
    while not all(thread.done() for thread in threads):
        try:
            await asyncio.wait(threads)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
