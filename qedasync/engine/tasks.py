"""The image's own tasks: nobody else keeps them, so they are kept here until they end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from qedasync.waiting import until_done

__all__ = ["TaskOwner"]

T = TypeVar("T")


class TaskOwner:
    """Keeps strong references to background tasks, names them, and waits for them at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        """Run ``work`` in a task of the image's own; its errors reach who waits for it."""
        task = asyncio.create_task(work, name=f"{self._name}: {what}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def run(self, work: Coroutine[Any, Any, T], what: str) -> T:
        """Do ``work`` to its end, whatever becomes of the caller.

        Cancellation: runs to the end, is raised then.
        """
        task = self.start(work, what)
        await until_done(task)
        return task.result()

    async def share(self, task: asyncio.Task[T]) -> T:
        """Wait for a task that others wait for, too.

        Cancellation: at once; the task goes on.
        """
        return await asyncio.shield(task)

    async def ended(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Wait until all of these have ended, however they do. Cancellation: at once."""
        await asyncio.wait(tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever waits for the result gets it too

    async def drain(self) -> None:
        """Wait until every task has ended.

        Cancellation: runs to the end; the tasks are not cancelled.
        """
        cancelled = False
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
