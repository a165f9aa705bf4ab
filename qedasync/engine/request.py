"""Reading: a request's runs, from the image, from the backing file, or zeroes.

What the page cache has is copied at once; what would block is gathered and awaited together. A
mapped cluster never moves, so a run that was looked up may be read later in the same request.

Source: qemu 7.2 block/qed.c: qed_aio_read_data.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from qedasync.engine.buffers import cut, zero
from qedasync.engine.fanout import one_by_one, run_all
from qedasync.engine.source import Source
from qedasync.engine.tables import Tables
from qedasync.format.cluster import ClusterKind, Lookup, NeedSlice
from qedasync.storage.base import ReadBuffers, Storage

__all__ = ["Reader"]

_Miss = tuple[Callable[[ReadBuffers, int], Coroutine[Any, Any, None]], ReadBuffers, int]


class Reader:
    """Reads of one image.

    Args:
        alone: no event loop runs: what would block is read piece by piece.

    Attributes:
        backing: what unallocated areas come from, or None for zeroes.
    """

    def __init__(self, storage: Storage, tables: Tables, *, alone: bool = False) -> None:
        self.backing: Source | None = None
        self._await_all = one_by_one if alone else run_all
        self._storage = storage
        self._tables = tables

    async def read_into(self, buffers: ReadBuffers, pos: int, length: int) -> None:
        """Fill ``buffers``, ``length`` bytes in all, from ``pos`` on.

        Raises:
            CorruptTable, StorageError, BackingError: what the run met; the content of ``buffers``
            is then undefined.

        Locks: none. Cancellation: when nothing touches the buffers any more.
        """
        misses: list[_Miss] = []
        done = 0
        while done < length:
            found = self._tables.lookup(pos + done, length - done)
            if type(found) is NeedSlice:
                found = await self._tables.find_cluster(pos + done, length - done)
            assert type(found) is Lookup
            part = buffers if found.length == length else cut(buffers, done, found.length)
            self._read_run(found, part, pos + done, misses)
            done += found.length
        if misses:
            await self._await_all(read(part, offset) for read, part, offset in misses)

    def _read_run(self, found: Lookup, part: ReadBuffers, pos: int, misses: list[_Miss]) -> None:
        """One run: at once, or noted in ``misses``."""
        if found.kind is ClusterKind.FOUND:
            if not self._storage.try_read_into(part, found.offset):
                misses.append((self._storage.read_into, part, found.offset))
        elif found.kind is ClusterKind.ZERO or self.backing is None:
            zero(part)
        else:
            self._read_backing(self.backing, part, pos, found.length, misses)

    def _read_backing(
        self, backing: Source, part: ReadBuffers, pos: int, length: int, misses: list[_Miss]
    ) -> None:
        """From the backing file, and zeroes past its end."""
        inside = max(0, min(backing.size - pos, length))
        if inside < length:
            zero(cut(part, inside, length - inside))
            part = cut(part, 0, inside)
        if inside and not backing.try_read_into(part, pos):
            misses.append((backing.read_into, part, pos))
