"""What the kernel's two ways to take requests without a thread have in common.

A queue has a fixed number of slots, each with a request of eight words in memory that the kernel
reads; most of these words never change. Who wants something done fills in the others
(:class:`Layout` says which), submits the slot, and hears by the eventfd when to ask what is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

__all__ = ["SLOTS", "WORDS", "Layout", "Queue"]

SLOTS = 256
"""Requests that may be with the kernel at once; devices hardly take more. A power of two."""

WORDS = 8
"""Words of 64 bits of one request."""


class Layout(NamedTuple):
    """Which words of a request change, and to what.

    Attributes:
        kind: index of the word that says what is to be done,
        read, write: and what it says then.
        length: index of the word for the bytes to be moved.
        offset: index of the word for where in the file.
    """

    kind: int
    read: int
    write: int
    length: int
    offset: int


class Queue(Protocol):
    """Requests on their way through the kernel; used on one thread.

    Attributes:
        words: the requests, one after the other.
        layout: of each.
        eventfd: readable when something is done; closed by who closes the queue, before that.
    """

    words: memoryview
    layout: Layout
    eventfd: int

    def submit(self, slots: Sequence[int]) -> int:
        """Hand the requests over; answers how many the kernel took, the first ones.

        Raises:
            OSError: not even the first.
        """
        ...

    def completed(self) -> Iterable[tuple[int, int]]:
        """Slots that are done since the last call, each with the bytes moved or minus an errno."""
        ...

    def close(self) -> None:
        """Give the kernel's part back; blocks; nothing may be with the kernel. Idempotent."""
        ...
