"""The two kinds of backing file: a raw file, and another image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from qedasync.engine.extents import Extent, ExtentKind, merge
from qedasync.engine.inline import Quick
from qedasync.errors import BackingError, FormatError
from qedasync.events import Event
from qedasync.storage.base import ReadBuffers, Storage

if TYPE_CHECKING:
    from qedasync.engine.core import Engine

__all__ = ["RawSource", "ImageSource"]

_RUNS = 1000  # found by one call
_BLOCK = 4096  # file systems keep holes in whole blocks of this size
_STEP, _MAX_STEP = 64 << 10, 1 << 20  # data that is searched for a hole at once, multiples of it


@runtime_checkable
class KnowsHoles(Protocol):
    """What a storage may have beside the protocol."""

    async def data_runs(self, offset: int, end: int, count: int) -> list[tuple[int, int]]:
        """The first ``count`` runs of data in ``[offset, end)``, by where they begin and end."""
        ...


class RawSource:
    """A raw file as a backing file; implements ``Source``. Owns the storage.

    Args:
        file: the host's device and file number, where known.
    """

    def __init__(self, storage: Storage, path: str, *, file: tuple[int, int] | None = None) -> None:
        self.storage = storage
        self.path = path
        self.file = file
        self._quick = storage if isinstance(storage, Quick) else None

    @property
    def size(self) -> int:
        return self.storage.size

    def try_read_into(self, buffers: ReadBuffers, pos: int) -> bool:
        return self.storage.try_read_into(buffers, pos, Event.READ_BACKING_AIO)

    def try_read_one(self, length: int, pos: int) -> bytearray | None:
        if self._quick is None or not 0 <= pos <= self.storage.size - length:
            return None
        return self._quick.try_read_one(length, pos)

    async def read_into(self, buffers: ReadBuffers, pos: int) -> None:
        await self.storage.read_into(buffers, pos, Event.READ_BACKING_AIO)

    async def block_status(self, pos: int, length: int) -> list[Extent]:
        """Data and holes; a hole much shorter than the data around it may pass for data."""
        end = pos + length
        runs: list[Extent] = []
        if isinstance(self.storage, KnowsHoles):
            return await self._all_runs(self.storage, pos, end)
        step = _STEP
        while pos < end and len(runs) < _RUNS:
            data = min(await self.storage.next_data(pos), end)
            if data > pos:
                runs.append(self._run(pos, data, zero=True))
                pos, step = data, _STEP
            if pos < end:
                after = await self._data_end(pos, min(pos + step, end))
                runs.append(self._run(pos, after, zero=False))
                pos, step = after, min(2 * step, _MAX_STEP)
        return list(merge(runs))

    async def sectors(self, pos: int, length: int) -> list[Extent]:
        """All runs of a part of the file as a disk of whole sectors; neighbours differ."""
        found: list[Extent] = []
        while length:
            runs = await self.first_sectors(pos, length)
            found += runs
            length -= runs[-1].end - pos
            pos = runs[-1].end
        return list(merge(found))

    async def first_sectors(self, pos: int, length: int) -> list[Extent]:
        """At least one of them; the tail that the file lacks counts as a hole."""
        inside = min(length, self.size - pos)
        if inside > 0:
            return await self.block_status(pos, inside)
        return [self._run(pos, pos + length, zero=True)]

    async def _all_runs(self, storage: KnowsHoles, pos: int, end: int) -> list[Extent]:
        """The same, of a storage that tells where data ends; perhaps only the beginning."""
        runs: list[Extent] = []
        found = await storage.data_runs(pos, end, _RUNS)
        for start, stop in found:
            if start > pos:
                runs.append(self._run(pos, start, zero=True))
            runs.append(self._run(start, stop, zero=False))
            pos = stop
        if pos < end and len(found) < _RUNS:
            runs.append(self._run(pos, end, zero=True))
        return runs

    async def _data_end(self, pos: int, end: int) -> int:
        """Where the data at ``pos`` ends, ``end`` at most: a storage only tells where it begins.

        An answer that is too low does no harm, the caller asks on from there.
        """
        low, high = pos // _BLOCK, (end - 1) // _BLOCK
        if high == low or await self.storage.next_data(end - 1) == end - 1:
            return end
        while high - low > 1:  # data at low, a hole at high
            middle = (low + high) // 2
            if await self.storage.next_data(middle * _BLOCK) == middle * _BLOCK:
                low = middle
            else:
                high = middle
        return high * _BLOCK

    def _run(self, start: int, end: int, *, zero: bool) -> Extent:
        return Extent(start, end - start, ExtentKind.DATA, zero, offset=start, path=self.path)

    async def close(self) -> None:
        await self.storage.close()


class ImageSource:
    """Another image as a backing file; implements ``Source``. Owns the engine.

    Args:
        name: as the image above records it; for messages.
        file: the host's device and file number, where known.
    """

    def __init__(self, engine: Engine, name: str, *, file: tuple[int, int] | None = None) -> None:
        self.engine = engine
        self.name = name
        self.file = file
        self.try_read_one = engine.try_below

    @property
    def path(self) -> str:
        return self.engine.path

    @property
    def size(self) -> int:
        return self.engine.image_size

    def try_read_into(self, buffers: ReadBuffers, pos: int) -> bool:
        return self.engine.try_fill(buffers, pos, sum(map(len, buffers)))

    async def read_into(self, buffers: ReadBuffers, pos: int) -> None:
        try:
            await self.engine.read_into(buffers, pos, sum(map(len, buffers)))
        except FormatError as error:
            raise self._damaged(error) from error

    async def block_status(self, pos: int, length: int) -> list[Extent]:
        try:
            return await self.engine.first_runs(pos, length)
        except FormatError as error:
            raise self._damaged(error) from error

    async def close(self) -> None:
        await self.engine.close()

    def _damaged(self, error: FormatError) -> BackingError:
        """Names the file, or one would look for the bad table in the image on top."""
        return BackingError(
            f"the backing file {self.engine.path!r} is damaged: {error}",
            name=self.name,
            errno=error.errno,
        )
