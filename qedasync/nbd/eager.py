"""Coroutines that are run at once, and become a task only if they have to wait.

Most requests of an image finish inline; a task for each would cost more than the request.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

__all__ = ["run_eagerly"]


def run_eagerly(
    work: Coroutine[Any, Any, None], start: Callable[[Coroutine[Any, Any, None]], object]
) -> bool:
    """Run ``work`` until it ends or waits; answers whether it has ended.

    Args:
        work: it raises nothing. Until its first wait it has no current task.
        start: makes a task of what is left, and keeps it.
    """
    try:
        waits_for = work.send(None)
    except StopIteration:
        return True
    start(_rest(work, waits_for))
    return False


async def _rest(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _go_on(work, waits_for)


@types.coroutine
def _go_on(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, None, None]:
    """Wait for what ``work`` waits for already, then drive it to its end.

    Cancellation: thrown into ``work`` where it waits.
    """
    while True:
        try:
            if isinstance(waits_for, asyncio.Future):
                # The loop takes a future only from who has just asked to wait for it.
                waits_for._asyncio_future_blocking = True
            yield waits_for
        except BaseException as error:
            step: Callable[[], Any] = _Thrown(work, error)
        else:
            step = _Sent(work)
        try:
            waits_for = step()
        except StopIteration:
            return


class _Sent:
    __slots__ = ("_work",)

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work

    def __call__(self) -> Any:
        return self._work.send(None)


class _Thrown:
    __slots__ = ("_error", "_work")

    def __init__(self, work: Coroutine[Any, Any, None], error: BaseException) -> None:
        self._work = work
        self._error = error

    def __call__(self) -> Any:
        return self._work.throw(self._error)
