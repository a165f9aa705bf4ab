"""Views: the bytes of an image where they lie in the page cache, instead of a copy of them.

What is one run in the file is lent from a map of it, zeroes from a constant; the rest is for the
caller to copy. A window of the file that is not in the cache is read on a thread first, so that
nobody waits for the disk who touches a view, and so that a disk that fails raises.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from qedasync.engine.source import Source
from qedasync.engine.tables import Tables
from qedasync.format.cluster import ClusterKind
from qedasync.storage.base import ZERO_CHUNK, Storage
from qedasync.turns import give_turn

__all__ = ["FilePages", "Lending", "Viewer", "pages_of"]

_STEP = 1 << 20  # looked at, or read, before the loop gets a turn


class FilePages(Protocol):
    """A map of a file, as :class:`~qedasync.storage.file_map.FileMap` is one."""

    view: memoryview
    resident: set[int]
    window: int

    def probe(self, offset: int, length: int) -> bool:
        """Whether a range may be lent now; never blocks."""
        ...

    def consider(self, offset: int) -> None:
        """Probe the window that ``offset`` is in, unless that has been done a moment ago."""
        ...

    def refresh(self) -> None:
        """Look whether what was lent may still be."""
        ...


@runtime_checkable
class Lending(Protocol):
    """What a storage may have beside the protocol."""

    def map(self) -> FilePages | None:
        """A map of the file for as long as the storage is open; None if it is not safe."""
        ...


def pages_of(storage: Storage) -> FilePages | None:
    """A map of the storage's file, or None if there is none to be had."""
    return storage.map() if isinstance(storage, Lending) else None


class Viewer:
    """Views of one image that is read only.

    Attributes:
        backing: what unallocated areas come from, or None for zeroes.
    """

    def __init__(self, storage: Storage, tables: Tables, file: FilePages) -> None:
        self.backing: Source | None = None
        self.file = file
        self._storage = storage
        self._tables = tables
        self._zeroes = memoryview(ZERO_CHUNK)

    async def find(self, length: int, pos: int) -> memoryview | None:
        """``length`` bytes from ``pos`` on where they are; None if they have to be copied.

        Raises:
            CorruptTable, StorageError: what the lookup, or reading the bytes, met.

        Locks: none. Cancellation: when no thread works for this any more.
        """
        found = await self._tables.find_cluster(pos, length)
        if found.length < length:
            return None
        if found.kind is ClusterKind.FOUND:
            return await self._lend(found.offset, length)
        if found.kind is ClusterKind.ZERO or self.backing is None:
            return self._zeroes[:length] if length <= len(self._zeroes) else None
        return None

    async def _lend(self, offset: int, length: int) -> memoryview | None:
        end = offset + length
        for start in range(offset, end, _STEP):
            if start > offset:
                await give_turn()
            if not await self._is_resident(start, min(_STEP, end - start)):
                return None
        return self.file.view[offset:end] if end <= len(self.file.view) else None

    async def _is_resident(self, offset: int, length: int) -> bool:
        """Whether a part of the file may be lent, after reading it if need be."""
        if self.file.probe(offset, length):
            return True
        start = offset - offset % self.file.window
        stop = -(-(offset + length) // self.file.window) * self.file.window
        await self._storage.read_into([bytearray(stop - start)], start)
        return self.file.probe(offset, length)
