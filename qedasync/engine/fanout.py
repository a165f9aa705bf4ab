"""Several transfers at once inside one call."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from itertools import islice
from typing import Any

__all__ = ["one_by_one", "run_all"]

_AT_ONCE = 64


async def run_all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await all of ``work``, up to 64 at a time; the first error ends the rest and leaves as
    itself.

    Coroutines are taken from ``work`` as they are started. Cancellation: all have ended on return.
    """
    pending = iter(work)
    while batch := list(islice(pending, _AT_ONCE)):
        if len(batch) == 1:
            await batch[0]
            continue
        import asyncio  # late: who runs without an event loop has no need of this

        try:
            async with asyncio.TaskGroup() as tasks:
                for coroutine in batch:
                    tasks.create_task(coroutine)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


async def one_by_one(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """The same, one after the other: for who runs without an event loop."""
    for coroutine in work:
        await coroutine
