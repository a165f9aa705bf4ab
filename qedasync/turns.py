"""A turn for the event loop, from code that also runs where there is none.

``asyncio.sleep(0)`` is the same; but this needs no asyncio, which takes longer to load than a short
program takes for all else. Who drives a coroutine by hand just goes on with it.
"""

from __future__ import annotations

from collections.abc import Generator
from types import coroutine

__all__ = ["give_turn"]


@coroutine
def give_turn() -> Generator[None, None, None]:
    """Let whatever else waits on the event loop run once.

    Cancellation: at once.
    """
    yield
