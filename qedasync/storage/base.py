"""The storage protocol: bytes at offsets, nothing else. Knows nothing of QED.

The contract, held by one test suite over every backend:

* **All or error.** A transfer moves every byte or raises :class:`~qedasync.errors.StorageError`
  with ``errno``, ``offset`` and ``length``. Nothing is short.
* **Past the end** reads give zeroes; a write past the end makes the file longer, and with
  ``zero_fills`` the gap reads as zeroes.
* **Settled.** A coroutine never returns or raises, not even ``CancelledError``, while anyone else
  may still touch the buffers or the file on its behalf. A write that was cancelled before it was
  started may leave the file untouched; one that was started runs to its end first.
* **Overlap.** Concurrent reads and writes are allowed. Where two writes in flight overlap, each
  byte ends as one of the written values. A read that starts after a write returned sees it.
* **Durable** means: :meth:`flush` began after the write returned, and returned without an error.
* **EAGAIN** never leaves a storage as an error of its own making: "would block" is ``False`` from
  :meth:`try_read_into` and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from qedasync.events import Event

__all__ = [
    "Storage",
    "Started",
    "StorageBase",
    "Write",
    "ReadBuffers",
    "WriteBuffers",
    "ZERO_CHUNK",
    "zero_views",
]

WriteBuffers: TypeAlias = Sequence[bytes | bytearray | memoryview]
"""What a write takes: buffers laid end to end; memoryviews must be C-contiguous bytes ("B")."""

ReadBuffers: TypeAlias = Sequence[bytearray | memoryview]
"""What a read fills: writable buffers laid end to end."""

Started: TypeAlias = Awaitable[bytearray | None]
"""A read under way: its bytes, or None if it has to be done in another way.

Cancellation: at once; the storage keeps what the host still works with.
"""

ZERO_CHUNK = bytes(1 << 20)
"""A MiB of zeroes to write from."""


def zero_views(length: int) -> Iterator[memoryview]:
    """``length`` bytes of zeroes as buffers to write; all of them share :data:`ZERO_CHUNK`."""
    zeroes = memoryview(ZERO_CHUNK)
    for done in range(0, length, len(zeroes)):
        yield zeroes[: length - done]


@dataclass(slots=True)
class Write:
    """One write of a :meth:`Storage.write_many` list; not to be changed.

    Not frozen: making a frozen one takes three times as long, for every allocating write.

    Attributes:
        offset: where in the file, bytes.
        buffers: what, laid end to end.
        length: total bytes in ``buffers``.
        event: why.
    """

    offset: int
    buffers: WriteBuffers
    length: int
    event: Event


@runtime_checkable
class Storage(Protocol):
    """Bytes at offsets; see the module's contract."""

    @property
    def size(self) -> int:
        """Length of the file in bytes, as of the last completed write or truncate. No I/O."""
        ...

    @property
    def zero_fills(self) -> bool:
        """Whether growth (by a truncate or a write past the end) reads as zeroes."""
        ...

    def try_read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> bool:
        """Fill ``buffers`` at once if that cannot block; False says it would (or cannot be known).

        After False the buffers' content is undefined. Errors also answer False: :meth:`read_into`
        then reports them.
        """
        ...

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        """Fill ``buffers`` from ``offset`` on; bytes past the end of the file are zeroes."""
        ...

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        """Write ``buffers``, laid end to end, at ``offset``."""
        ...

    def try_write(self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO) -> bool:
        """Write ``buffers`` at once if that is not expected to block; False says nothing was tried,
        or that it went wrong: :meth:`write` then does it again, or reports.
        """
        ...

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        """Make the file at least ``grow_to`` bytes long, then write all of ``writes``, in this
        order: if a later one is in the file, so are the earlier ones and the growth.

        Raises the first failure; which of the others are in the file is then unknown. Neither order
        nor anything else is promised about a power loss before the next flush.
        """
        ...

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        """Make ``[offset, offset + length)`` read as zeroes; may give host blocks back."""
        ...

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        """Make every write that returned before this call durable."""
        ...

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        """Set the file's length; growth reads as zeroes if ``zero_fills``."""
        ...

    async def next_data(self, offset: int) -> int:
        """The first offset >= ``offset`` that may hold anything but zeroes; ``size`` if none.

        A storage that cannot know answers ``offset``.
        """
        ...

    async def close(self) -> None:
        """Release everything (descriptor, threads, locks). Idempotent. Does not flush."""
        ...


class StorageBase(ABC):
    """A start for a storage of one's own: six members to write, the rest has defaults."""

    zero_fills: bool = False

    @property
    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None: ...

    @abstractmethod
    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None: ...

    @abstractmethod
    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None: ...

    @abstractmethod
    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    def try_read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> bool:
        return False

    def try_write(self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO) -> bool:
        return False

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        if grow_to > self.size:
            await self.truncate(grow_to, Event.CLUSTER_ALLOC)
        for write in writes:
            await self.write(write.buffers, write.offset, write.event)

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        for piece in zero_views(length):
            await self.write([piece], offset, event)
            offset += len(piece)

    async def next_data(self, offset: int) -> int:
        return offset
