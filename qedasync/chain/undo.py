"""A step that is undone if it fails; and where that cannot be, the image has failed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from qedasync.errors import QEDError

__all__ = ["MayFail", "undone"]


class MayFail(Protocol):
    """An image of which writes may have an unknown outcome: an engine, or one without."""

    def fail(self, error: BaseException) -> None:
        """Take no writes from now on."""
        ...


@asynccontextmanager
async def undone(image: MayFail, undo: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run the body; if it fails, ``undo`` it before its error leaves.

    The image fails if that fails too, or if anything but an error of ours ended the body: then
    nobody knows what is on disk.
    """
    try:
        yield
    except QEDError:
        try:
            await undo()
        except BaseException as error:
            image.fail(error)
            raise
        raise
    except BaseException as error:  # the loop is shutting down, or the storage has a bug
        image.fail(error)
        raise
