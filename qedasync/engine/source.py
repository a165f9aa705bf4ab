"""What the engine asks of a backing file: bytes at guest positions, and what they are."""

from __future__ import annotations

from typing import Protocol

from qedasync.engine.extents import Extent
from qedasync.storage.base import ReadBuffers

__all__ = ["Source"]


class Source(Protocol):
    """A raw file or another image, read only. Reads stay below ``size``; the engine sees to
    that."""

    @property
    def size(self) -> int:
        """Guest-visible bytes."""
        ...

    def try_read_into(self, buffers: ReadBuffers, pos: int) -> bool:
        """Fill ``buffers`` at once if that cannot block; after False their content is undefined."""
        ...

    def try_read_one(self, length: int, pos: int) -> bytearray | None:
        """``length`` bytes in a new buffer, if that is quicker than the above; else None.

        Any length above 0 and any position are safe.
        """
        ...

    async def read_into(self, buffers: ReadBuffers, pos: int) -> None:
        """Fill ``buffers`` from ``pos`` on."""
        ...

    async def block_status(self, pos: int, length: int) -> list[Extent]:
        """What is in ``[pos, pos + length)``, in order, without gaps; depths count from 0 here.

        Of a long range perhaps only the beginning: the caller asks on from where the answer ends.
        """
        ...

    async def close(self) -> None:
        """Release it. Idempotent."""
        ...
