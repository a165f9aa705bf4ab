"""Tasks that begin and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeAlias

__all__ = ["Job", "first_leaf", "together"]

Job: TypeAlias = Coroutine[Any, Any, None]


async def together(jobs: list[Job], watchers: list[Job]) -> None:
    """Run all jobs, and the watchers meanwhile; the first failure ends all and leaves as itself."""
    try:
        async with asyncio.TaskGroup() as watching:
            watches = [watching.create_task(watcher) for watcher in watchers]
            async with asyncio.TaskGroup() as working:
                for job in jobs:
                    working.create_task(job)
            for watch in watches:
                watch.cancel()
    except BaseExceptionGroup as failures:
        raise first_leaf(failures) from None


def first_leaf(error: BaseException) -> BaseException:
    """The first exception in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
