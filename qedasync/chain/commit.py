"""Commit: what an image holds goes down into its backing file, and then out of the image.

While a run is being copied, the image still has it, so nobody sees what the backing file holds
there. Guests go on writing: what they write is noted, and copied again, in ever shorter passes. The
last one has the image to itself. When the backing file is durable, and only then, L1 is cleared,
flushed, and the file cut behind it; whatever a crash leaves of these steps, each cluster is read
from the image or, the same, from below.

Differs from QEMU: it leaves the image as full as it was, and needs it to be at rest.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Iterable, Iterator
from functools import partial

from qedasync.backing import ChainFiles
from qedasync.chain.layers import Layer, Target, find_layer, layers_of, writable
from qedasync.chain.undo import undone
from qedasync.chain.walk import PIECE, Progress, View, work_through
from qedasync.disk import Disk
from qedasync.engine.core import Engine
from qedasync.engine.extents import Extent, ExtentKind
from qedasync.events import Event
from qedasync.format.geometry import ENTRY_BYTES
from qedasync.format.table import pack_entries

__all__ = ["commit", "empty_image"]

_PASSES = 8
_LITTLE = 8 << 20  # bytes to copy while everybody waits
_MANY = 64  # pieces; a longer range is noted as a range
_EVERYWHERE = 1 << 63

_Piece = tuple[int, int, bool]  # [start, stop) of guest bytes, and whether they are zeroes


async def commit(
    engine: Engine,
    files: ChainFiles,
    *,
    base: Disk | str | None = None,
    empty: bool = True,
    progress: Progress,
    tasks: int = 8,
) -> None:
    """Copy what an open image holds into its backing file, and empty the image.

    Args:
        base: a file further down instead: an open disk of the chain, or a name. What the files
            between hold is copied too; the image is not emptied, and whoever reads one of the
            files between by itself reads a mixture.
        empty: else the image stays as it is.
        tasks: pieces copied at a time.

    Raises:
        RequestError: there is no such backing file.
        ReadOnly, ImageLocked: it cannot be written; nothing has been changed.
        QEDError: reading or writing failed. The image is as it was; the backing file may hold a
            part of it already.

    Cancellation: as for an error; once the image is being emptied, runs to the end.
    """
    engine.check_writable()
    async with engine.job:
        layer = await find_layer(engine, base)
        async with writable(engine, layer, files) as target:
            job = _Commit(engine, layer, target, progress, tasks)
            if empty and layer.depth == 1:
                await job.move()
            else:
                await job.copy()
        progress.at(engine.image_size, engine.image_size)


class _Written:
    """What guests have written: pieces, and ranges where these would be too many."""

    def __init__(self) -> None:
        self._pieces: set[int] = set()
        self._ranges: list[tuple[int, int]] = []

    def add(self, pos: int, length: int) -> None:
        first, last = pos // PIECE, (pos + length - 1) // PIECE
        if last - first < _MANY:
            self._pieces.update(range(first, last + 1))
        else:
            self._ranges.append((pos, pos + length))

    def __len__(self) -> int:
        """Bytes, about."""
        return len(self._pieces) * PIECE + sum(stop - start for start, stop in self._ranges)

    def ranges(self) -> Iterator[tuple[int, int]]:
        yield from self._ranges
        for piece in sorted(self._pieces):
            yield piece * PIECE, (piece + 1) * PIECE


class _Commit:
    def __init__(
        self, engine: Engine, layer: Layer, target: Target, progress: Progress, tasks: int
    ) -> None:
        self._engine = engine
        self._depth = layer.depth
        self._target = target
        self._progress = progress
        self._tasks = max(1, tasks)
        self._view = View(engine, deep=layer.depth > 1)
        self._copied = 0
        self._old_size = target.size
        between = [each.source.size for each in layers_of(engine) if each.depth < layer.depth]
        self._shortest = min(between, default=_EVERYWHERE)
        self._written = _Written()

    async def copy(self) -> None:
        """Copy everything once; durable on return."""
        await self._copy_new()
        await self._target.flush()

    async def move(self) -> None:
        """Copy until nothing is left to copy, then empty the image."""
        with self._engine.watched(self._note):
            await self._copy_new()
            for _ in range(_PASSES):
                if len(self._written) <= _LITTLE:
                    break
                await self._copy_written()
            await self._target.flush()  # most of it, before everybody has to wait
            while not await self._finish():
                await self._copy_new()

    def _note(self, pos: int, length: int) -> None:
        self._written.add(pos, length)

    async def _finish(self) -> bool:
        """The last part, with the image to itself; False if it has grown."""
        engine = self._engine
        async with engine.exclusive():
            if engine.image_size != self._copied:
                return False
            engine.check_writable()
            self._view.inside = True
            await engine.tasks.run(self._last_part(), "end of a commit")
            return True

    async def _last_part(self) -> None:
        await self._copy_written()
        await self._target.flush()
        await empty_image(self._engine)

    # ---------------------------------------------------------------- copying

    async def _copy_new(self) -> None:
        """All of the image, or what it has grown by since."""
        size = self._engine.image_size
        if self._target.size < size:
            await self._target.grow(size)
        start = self._engine.geometry.start_of_cluster(self._copied)
        await self._copy([(start, size)])
        self._copied = size

    async def _copy_written(self) -> None:
        """What guests have written; what they write from now on is for the next time."""
        written, self._written = self._written, _Written()
        await self._copy(written.ranges())

    async def _copy(self, ranges: Iterable[tuple[int, int]]) -> None:
        await work_through(self._pieces(ranges), self._copy_piece, self._tasks)

    async def _pieces(self, ranges: Iterable[tuple[int, int]]) -> AsyncGenerator[_Piece, None]:
        size = self._engine.image_size
        for start, stop in ranges:
            async for run in self._view.runs(start, min(stop, size)):
                self._progress.at(run.start, size)
                first, last = self._part_to_copy(run)
                step = last - first if run.zero else PIECE
                while first < last:
                    yield first, min(first + step, last), run.zero
                    first += step

    def _part_to_copy(self, run: Extent) -> tuple[int, int]:
        """What of a run lies above the target.

        Past the end of a file between, nothing shows of the target: that is zeroes.
        """
        if run.kind is ExtentKind.UNALLOCATED:
            return max(run.start, self._shortest), min(run.end, self._old_size)
        return (run.start, run.end) if run.depth < self._depth else (0, 0)

    async def _copy_piece(self, piece: _Piece) -> None:
        start, stop, zero = piece
        if zero:
            await self._target.write_zeroes(start, stop - start)
            return
        data = bytearray(stop - start)
        await self._view.read_into(data, start)
        await self._target.write(data, start)


async def empty_image(engine: Engine) -> None:
    """Make an image hold nothing; the file is cut behind L1. What is below shows through.

    Raises:
        StorageError: the image is as it was, or empty and the file is longer than it need be; if
            nobody knows which, the image has failed.

    Locks: the caller has the image to itself (``Engine.exclusive``). Order: L1 is durable before
    the file is cut. The cut needs no flush of its own: with a backing file, whatever is handed out
    next is flushed before anything names it.
    """
    tables, geometry = engine.tables, engine.geometry
    await tables.loads_ended()
    await _clear_l1(engine)
    await engine.sync()
    tables.reset(array("Q", bytes(ENTRY_BYTES * len(tables.l1))))
    await engine.storage.truncate(geometry.l1_end)
    engine.allocator.end_of_file = geometry.l1_end


async def _clear_l1(engine: Engine) -> None:
    """Zero all of L1; the part in use is put back if that fails."""
    storage, offset = engine.storage, engine.geometry.l1_table_offset
    old = partial(storage.write, [pack_entries(engine.tables.l1)], offset, Event.L1_UPDATE)
    async with undone(engine, old):
        await storage.write_zeroes(offset, engine.geometry.table_bytes, Event.L1_UPDATE)
