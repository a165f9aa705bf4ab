"""Gets tables from the storage: in pieces, past holes, and with turns for the event loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Self

from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.format.geometry import ENTRY_BYTES, SLICE_BYTES, SLICE_ENTRIES, Geometry
from qedasync.storage.base import ZERO_CHUNK, Storage
from qedasync.turns import give_turn

__all__ = ["Pacer", "Progress", "TableReader", "Hole", "read_piece", "is_zero", "PIECE"]

Progress = Callable[[int, int], None]
"""Called with (done, total), in tables."""

PIECE = len(ZERO_CHUNK)
"""Bytes read or copied at once."""

_TURN_AFTER = 0.0005
_ASK_FOR_HOLES_FROM = 64 << 10
_ZERO_SLICE = bytes(SLICE_BYTES)


class Pacer:
    """Gives the loop a turn after half a millisecond of work, and says how far things are.

    Attributes:
        done, total: tables.
    """

    def __init__(self, progress: Progress | None) -> None:
        self.done = 0
        self.total = 0
        self._progress = progress
        self._until = time.perf_counter() + _TURN_AFTER

    def due(self) -> bool:
        """Whether it is time to ``pause``."""
        return time.perf_counter() >= self._until

    async def pause(self) -> None:
        """Give the loop a turn."""
        self.report()
        await give_turn()
        self._until = time.perf_counter() + _TURN_AFTER

    def report(self) -> None:
        """Tell whoever wants to know."""
        if self._progress is not None:
            self._progress(self.done, self.total)


async def read_piece(storage: Storage, offset: int, length: int, event: Event) -> bytearray:
    """``length`` bytes at ``offset``.

    Raises:
        StorageError: they cannot be read.
    """
    data = bytearray(length)
    if not storage.try_read_into([data], offset, event):
        await storage.read_into([data], offset, event)
    return data


def is_zero(data: bytearray) -> bool:
    """Whether there is nothing but zeroes in at most ``PIECE`` bytes."""
    return data == (ZERO_CHUNK if len(data) == PIECE else ZERO_CHUNK[: len(data)])


class Hole:
    """The last hole in the file that was come upon; whatever lies there need not be read.

    It grows at both ends, so whoever goes through a large one in any order asks a few times only.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._start = self._end = 0

    def end(self, pos: int) -> int:
        """Where the hole ends, in whole slices, if ``pos`` is in it; else ``pos``."""
        return self._end if self._start <= pos < self._end else pos

    async def look(self, pos: int) -> None:
        """There are zeroes at ``pos``: see how far they go, if the storage knows.

        Raises:
            StorageError: the storage cannot say.
        """
        end = await self._storage.next_data(pos) & -SLICE_BYTES
        if end > pos and (end != self._end or pos < self._start):
            self._start, self._end = pos, end


class TableReader:
    """Reads tables of one image.

    Args:
        on_error: told where a table could not be read, and why; the rest of it is left out.
    """

    def __init__(
        self,
        storage: Storage,
        geometry: Geometry,
        pacer: Pacer,
        on_error: Callable[[int, StorageError], None],
    ) -> None:
        self._storage = storage
        self._geometry = geometry
        self._pacer = pacer
        self._on_error = on_error
        self._hole = Hole(storage)

    def l1(self) -> AsyncIterator[tuple[int, bytes]]:
        """All slices of L1 that are not zeroes: the first index, and the slice as on disk."""
        return _L1(self.table(self._geometry.l1_table_offset), self._pacer)

    def table(self, offset: int) -> AsyncIterator[tuple[int, memoryview]]:
        """All of a table that is not zeroes: the first index of a piece of whole slices, and it."""
        return _Pieces(self, offset, self._geometry.table_bytes)

    async def read(self, pos: int, end: int) -> tuple[int, bytearray | None]:
        """A piece that is not all zeroes: where it begins, at or after ``pos``, and its bytes.

        None for the bytes says that there is none before ``end``.
        """
        while (pos := self._hole.end(pos)) < end:
            length = min(PIECE, end - pos)
            try:
                data = await read_piece(self._storage, pos, length, Event.CHECK_LOAD)
                if not is_zero(data):
                    return pos, data
                if length >= _ASK_FOR_HOLES_FROM:
                    await self._hole.look(pos)
            except StorageError as error:
                self._on_error(pos, error)
                break
            pos += length
        return end, None


# Iterators, not async generators: one that is not used up leaves no task behind to close it.


class _Pieces:
    def __init__(self, reader: TableReader, offset: int, length: int) -> None:
        self._reader = reader
        self._start = self._pos = offset
        self._end = offset + length

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, memoryview]:
        start, data = await self._reader.read(self._pos, self._end)
        if data is None:
            raise StopAsyncIteration
        self._pos = start + len(data)
        return (start - self._start) // ENTRY_BYTES, memoryview(data)


class _L1:
    def __init__(self, pieces: AsyncIterator[tuple[int, memoryview]], pacer: Pacer) -> None:
        self._pieces = pieces
        self._pacer = pacer
        self._first = 0
        self._rest = memoryview(b"")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, bytes]:
        while True:
            if not self._rest:
                self._first, self._rest = await anext(self._pieces)
            if self._pacer.due():
                await self._pacer.pause()
            first, raw = self._first, bytes(self._rest[:SLICE_BYTES])
            self._first += SLICE_ENTRIES
            self._rest = self._rest[SLICE_BYTES:]
            if raw != _ZERO_SLICE:
                return first, raw
