"""Copying one disk to another: what is data is read and written, what is zeroes is not.

Several pieces are on their way at once. In order means that their writes begin in order: new
clusters are handed out as the pieces lie in the source, and the target can be read from end to end
without a jump.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from qedasync import Disk, Extent, ExtentKind, QEDError
from qedasync.errors import RequestError
from qedasync.jobs import zeroes
from qedasync.jobs.buffers import new_buffer
from qedasync.jobs.grid import on_grid
from qedasync.jobs.pump import pump
from qedasync.jobs.runs import runs_from, salvaged_runs

__all__ = ["CopyResult", "copy"]

_PIECE = 1 << 20  # bytes read at once
_ZERO_PIECE = 1 << 40  # bytes zeroed at once
_SECTOR = 512

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class CopyResult:
    """What a copy has done, in guest bytes.

    Attributes:
        copied: read and written.
        zeroed: made to read as zeroes.
        skipped: left alone, for the target has it already.
        unreadable: could not be read, and are zeroes in the target (salvage only).
    """

    copied: int = 0
    zeroed: int = 0
    skipped: int = 0
    unreadable: int = 0


async def copy(
    source: Disk,
    target: Disk,
    *,
    tasks: int = 8,
    in_order: bool = True,
    min_zero: int = 4096,
    target_is_zero: bool = False,
    top_only: bool = False,
    salvage: bool = False,
    progress: Progress | None = None,
    start: int = 0,
    alone: bool = False,
) -> CopyResult:
    """Make ``target`` read as ``source`` does, from ``start`` on; durable after a flush.

    Args:
        source, target: disks; the target has room for the source behind ``start``.
        tasks: pieces on their way at once.
        in_order: begin to write them in order.
        min_zero: shortest run of zeroes in data that is left out, in bytes; 0 writes them all,
            holes too.
        target_is_zero: the target reads as zeroes; they need not be written.
        top_only: copy only what the source holds itself, and nothing of its backing file.
        salvage: what cannot be read becomes zeroes, instead of an end of the copy.
        progress: called with (done, total) bytes.
        start: where in the target the source begins.
        alone: nobody else uses the target, which then takes less time to fill.

    Raises:
        RequestError: the target is too small, or a number makes no sense.
        QEDError: a read or a write failed; nothing runs any more.

    Cancellation: waits for the writes in flight.
    """
    if tasks < 1 or min_zero < 0 or min_zero % 4096:
        raise RequestError("tasks must be at least 1, and min_zero a multiple of 4096")
    if start + source.size > target.size:
        raise RequestError(
            f"The target of {target.size} bytes is too small for {source.size} bytes at {start}",
            size=target.size,
            length=source.size,
            offset=start,
        )
    job = _Copy(source, target, tasks, in_order, min_zero, target_is_zero, top_only, salvage)
    job.progress, job.start, job.alone = progress, start, alone
    return await job.run()


class _Copy:
    """One copy going on."""

    def __init__(
        self,
        source: Disk,
        target: Disk,
        tasks: int,
        in_order: bool,
        min_zero: int,
        target_is_zero: bool,
        top_only: bool,
        salvage: bool,
    ) -> None:
        self.source, self.target = source, target
        self.result = CopyResult()
        self.progress: Progress | None = None
        self.start = 0
        self.alone = False
        self._tasks = tasks
        self._in_order = in_order
        self._min_zero = min_zero
        self._piece = zeroes.piece_size(_PIECE, min_zero)
        self._target_is_zero = target_is_zero
        self._top_only = top_only
        self._salvage = salvage
        self._total = source.size
        self._done = 0
        self._buffers: list[bytearray] = []
        self._turn = asyncio.Event()  # of the piece that may begin to write
        self._turn.set()

    async def run(self) -> CopyResult:
        self._tell(0)
        slots = asyncio.Semaphore(self._tasks)
        await self._begin()
        try:
            async with asyncio.TaskGroup() as group:
                async with aclosing(self._pieces()) as pieces:
                    async for piece in pieces:
                        if piece.zero:
                            await self._zero(piece.start, piece.length)
                            continue
                        await slots.acquire()
                        mine, self._turn = self._turn, asyncio.Event()
                        group.create_task(self._move(piece, slots, mine, self._turn))
        except* QEDError as failed:
            raise _first(failed) from None
        return self.result

    async def _begin(self) -> None:
        """The part that can be done the fast way: perhaps all, perhaps nothing."""
        if not self._target_is_zero or self._top_only:
            return
        self._done, self.result.copied = await pump(
            self.source,
            self.target,
            tasks=self._tasks,
            in_order=self._in_order,
            min_zero=self._min_zero,
            alone=self.alone,
            start=self.start,
            progress=self._tell,
        )
        self.result.skipped = self._done - self.result.copied

    async def _pieces(self) -> AsyncGenerator[Extent, None]:
        """The source's runs, cut into pieces; what the target has already is counted only."""
        async with aclosing(self._runs(self._done)) as runs:
            async for run in runs:
                if self._is_there(run):
                    self.result.skipped += run.length
                    self._advance(run.length)
                    continue
                for piece in self._cut(run):
                    yield piece

    async def _runs(self, start: int) -> AsyncGenerator[Extent, None]:
        find = salvaged_runs if self._salvage else runs_from
        runs = find(self.source, start)
        if self._top_only:
            runs = on_grid(runs, getattr(self.target, "cluster_size", _SECTOR), self._total)
        async for run in runs:
            yield run

    def _is_there(self, run: Extent) -> bool:
        if self._top_only:
            return run.kind is ExtentKind.BACKING
        return run.zero and self._target_is_zero and self._min_zero > 0

    def _cut(self, run: Extent) -> Iterator[Extent]:
        """The run in pieces; if nothing is to be left out, zeroes are data."""
        if not self._min_zero:
            run = replace(run, zero=False)
        return _cut(run, _ZERO_PIECE if run.zero else self._piece)

    async def _zero(self, pos: int, length: int) -> None:
        await self.target.write_zeroes(length, self.start + pos)
        self.result.zeroed += length
        self._advance(length)

    async def _move(
        self, piece: Extent, slots: asyncio.Semaphore, mine: asyncio.Event, next_one: asyncio.Event
    ) -> None:
        try:
            # Buffers are used again: memory that is new to the process is slow.
            data = self._buffers.pop() if self._buffers else new_buffer(self._piece)
            await self._read(piece, data)
            runs = list(zeroes.runs(data, piece.length, self._min_zero))
            if self._in_order:
                await mine.wait()
            if len(runs) == 1:
                # Begun before the next piece's may begin.
                write = asyncio.ensure_future(self._write(piece.start, data, *runs[0]))
                try:
                    await asyncio.sleep(0)
                    next_one.set()
                finally:
                    await write  # also when the copy is being ended: it has begun
            else:
                for run in runs:
                    await self._write(piece.start, data, *run)
            self._buffers.append(data)
        finally:
            next_one.set()
            slots.release()
        self._advance(piece.length)

    async def _read(self, piece: Extent, data: bytearray) -> None:
        try:
            await self.source.readinto(memoryview(data)[: piece.length], piece.start)
        except QEDError:
            if not self._salvage:
                raise
            await self._read_what_can_be(piece, data)

    async def _read_what_can_be(self, piece: Extent, data: bytearray) -> None:
        """Sector by sector."""
        for at in range(0, piece.length, _SECTOR):
            length = min(_SECTOR, piece.length - at)
            try:
                data[at : at + length] = await self.source.pread(length, piece.start + at)
            except QEDError:
                data[at : at + length] = bytes(length)
                self.result.unreadable += length

    async def _write(self, pos: int, data: bytearray, start: int, length: int, zero: bool) -> None:
        pos += self.start + start
        if not zero:
            await self.target.pwrite(memoryview(data)[start : start + length], pos)
            self.result.copied += length
        elif self._target_is_zero and not self._top_only:
            self.result.skipped += length
        else:
            await self.target.write_zeroes(length, pos)
            self.result.zeroed += length

    def _advance(self, length: int) -> None:
        self._done += length
        self._tell(self._done)

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self._total)


def _cut(run: Extent, size: int) -> Iterator[Extent]:
    """The run in pieces that end at multiples of ``size``."""
    pos = run.start
    while pos < run.end:
        stop = min((pos // size + 1) * size, run.end)
        yield Extent(pos, stop - pos, run.kind, zero=run.zero)
        pos = stop


def _first(failed: BaseExceptionGroup[QEDError]) -> QEDError:
    """The first error itself: a group does not leave."""
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, QEDError)
    return error
