"""The fast way to copy: threads that read one host file and write another.

For a source whose bytes lie in a file as the guest sees them, and a target that reads as zeroes and
is a raw file, or an image that nobody else has yet. Whatever is not so simple, and everything that
goes wrong, is left to :mod:`qedasync.jobs.copying`, which does it again in its own way and reports.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from qedasync import Disk, Extent
from qedasync.jobs import zeroes
from qedasync.jobs.buffers import new_buffer
from qedasync.jobs.crew import Crew
from qedasync.jobs.lending import HostFile, is_direct, lent
from qedasync.jobs.runs import runs_from

__all__ = ["Window", "Windows", "pump", "reserve_ahead"]

_WINDOW = 512 << 10  # bytes; fits in a processor's cache
_RESERVE = 16 << 20
_MAX_CLUSTER = 2 << 20
_MAX_CLUSTERS = 16 << 20  # entries of 8 bytes are kept until the end
_BATCH = 2048  # windows that are gathered for the threads


class Bulk(Protocol):
    """What ``Image.bulk`` gives."""

    file: HostFile

    @property
    def cluster_size(self) -> int: ...

    def take(self, n_clusters: int) -> int: ...

    def link(self, pos: int, n_clusters: int, offset: int) -> None: ...


@dataclass(slots=True)
class Window:
    """A piece of the guest's disk that begins at a multiple of its size.

    Attributes:
        start, length: guest bytes; the last one of a disk may be short.
        parts: (place in the window, offset in the source's file, length) of what is no hole.
        copied: bytes that have been written.
        number: counts the windows in order.
        reserve: bytes from its start on, other windows' included, that are data in the source.
        reserved: whether one does so for this one.
    """

    start: int
    length: int
    parts: list[tuple[int, int, int]] = field(default_factory=list)
    copied: int = 0
    number: int = 0
    reserve: int = 0
    reserved: bool = False


class Windows:
    """Makes windows of runs of data that lie in the source's file.

    Args:
        size: of a window, bytes.
        total: size of the disk.
    """

    def __init__(self, size: int, total: int) -> None:
        self._size = size
        self._total = total
        self._number = 0
        self._window: Window | None = None  # may get more parts

    def add(self, run: Extent) -> Iterator[Window]:
        """Take the next run; the windows that are ready."""
        assert run.offset is not None
        pos = run.start
        while pos < run.end:
            start = pos - pos % self._size
            if self._window is None or self._window.start != start:
                yield from self.rest()
                self._window = Window(
                    start, min(self._size, self._total - start), number=self._number
                )
                self._number += 1
            stop = min(start + self._size, run.end)
            self._window.parts.append((pos - start, run.offset + pos - run.start, stop - pos))
            pos = stop

    def rest(self, stop: int | None = None) -> Iterator[Window]:
        """The last window, if it begins before ``stop``."""
        window, self._window = self._window, None
        if window is not None and (stop is None or window.start < stop):
            yield window


def reserve_ahead(batch: list[Window]) -> None:
    """Let the first of neighbours of nothing but data reserve the room for all of them."""
    first: Window | None = None
    for window in batch:
        if window.parts[0][2] < window.length:
            first = None
            continue
        if (
            first is None
            or first.start + first.reserve != window.start
            or first.reserve >= _RESERVE
        ):
            first = window
        first.reserve += window.length
        window.reserved = True


async def pump(
    source: Disk,
    target: Disk,
    *,
    tasks: int,
    in_order: bool,
    min_zero: int,
    alone: bool,
    start: int,
    progress: Callable[[int], None],
) -> tuple[int, int]:
    """Copy from the beginning on, as far as that goes.

    Args:
        alone: nobody else uses the target.
        start: where in the target the source begins.
        progress: called with how far the copy is.

    Returns: up to which byte the target is as the source is, and how many of these have been
        written. (0, 0) if this is not the way to do it.

    Raises:
        QEDError: the source's map cannot be read, or the tables of the target not be written.

    Cancellation: waits for what is in flight.
    """
    async with AsyncExitStack() as stack:
        read = await lent(stack, source)
        if read is None or not min_zero or target.readonly:
            return 0, 0
        bulk = await _bulk(stack, target, start) if alone else None
        write = bulk.file if bulk is not None else await lent(stack, target, writing=True)
        if write is None:
            return 0, 0
        job = _Pump(read, write, bulk, min_zero, in_order, start)
        return await job.run(source, tasks, progress)


async def _bulk(stack: AsyncExitStack, disk: Any, start: int) -> Bulk | None:
    if not hasattr(disk, "bulk"):
        return None
    size = disk.cluster_size
    if start or size > _MAX_CLUSTER or disk.size // size > _MAX_CLUSTERS:
        return None
    bulk: Bulk | None = await stack.enter_async_context(disk.bulk())
    return bulk


class _Pump:
    def __init__(
        self,
        read: HostFile,
        write: HostFile,
        bulk: Bulk | None,
        min_zero: int,
        in_order: bool,
        start: int,
    ) -> None:
        self._read, self._write = read, write
        self._bulk = bulk
        self._unit = 4096 if bulk is None else bulk.cluster_size
        self._window = zeroes.piece_size(max(_WINDOW, self._unit), min_zero)
        self._min_zero = min_zero
        self._waits = in_order and bulk is not None
        self._start = start
        self._buffers: list[bytearray] = []
        self._lock = threading.Condition()
        self._copied = 0
        self._turn = 0  # number of the window whose clusters come next

    async def run(
        self, source: Disk, tasks: int, progress: Callable[[int], None]
    ) -> tuple[int, int]:
        """See :func:`pump`."""
        maker = Windows(self._window, source.size)
        batch: list[Window] = []
        reached: int | None
        with Crew(self._move, tasks) as crew:
            async with aclosing(runs_from(source, 0)) as runs:
                async for run in runs:
                    if not run.zero and not is_direct(run):
                        end = run.start - run.start % self._window
                        batch += maker.rest(end)
                        reached = await self._work_off(crew, batch, progress)
                        return end if reached is None else reached, self._copied
                    for window in maker.add(run) if not run.zero else ():
                        batch.append(window)
                        if len(batch) >= _BATCH:
                            reached = await self._work_off(crew, batch, progress)
                            if reached is not None:
                                return reached, self._copied
            batch += maker.rest()
            reached = await self._work_off(crew, batch, progress)
            if reached is None:
                reached = source.size
                progress(reached)
            return reached, self._copied

    async def _work_off(
        self, crew: Crew[Window], batch: list[Window], progress: Callable[[int], None]
    ) -> int | None:
        """Copy what has been gathered; answers the first position that is not done, if any."""
        todo, batch[:] = [*batch], []
        if not todo:
            return None
        if self._bulk is None:
            reserve_ahead(todo)

        def tick(left: int) -> None:
            if left < len(todo):
                progress(todo[len(todo) - left - 1].start)

        undone = await crew.do(todo, tick)
        reached = min((window.start for window in undone), default=None)
        self._copied += sum(
            window.copied for window in todo if reached is None or window.start < reached
        )
        return reached

    def _move(self, window: Window) -> bool:
        """Copy one window; on a thread."""
        buffer = self._buffers.pop() if self._buffers else new_buffer(self._window)
        data = memoryview(buffer)
        runs: list[tuple[int, int]] = []
        if window.reserve:
            self._write.reserve(self._start + window.start, window.reserve)
        try:
            self._fill(window, data)
            runs = zeroes.data_runs(buffer, window.length, self._min_zero, self._unit)
        finally:
            places = self._place(window, runs)
        for (begin, length), place in zip(runs, places, strict=True):
            self._write.write([data[begin : begin + length]], place)
            window.copied += length
        self._link(window, runs, places)
        if window.reserved and window.copied < window.length:
            self._release(window, runs)
        data.release()
        self._buffers.append(buffer)
        return True

    def _fill(self, window: Window, data: memoryview) -> None:
        done = 0
        for at, offset, length in window.parts:
            if at > done:
                data[done:at] = bytes(at - done)
            self._read.read_into([data[at : at + length]], offset)
            done = at + length
        if done < window.length:
            data[done : window.length] = bytes(window.length - done)

    def _place(self, window: Window, runs: list[tuple[int, int]]) -> list[int]:
        """Where in the target's file each run goes; clusters are handed out in order.

        Every window comes here, also one that could not be read, or the next would wait for ever.
        """
        if self._bulk is None:
            return [self._start + window.start + begin for begin, _ in runs]
        with self._lock:
            while self._waits and self._turn != window.number:
                self._lock.wait()
            places = [self._bulk.take(-(-length // self._unit)) for _, length in runs]
            self._turn += 1
            if self._waits:
                self._lock.notify_all()
        return places

    def _release(self, window: Window, runs: list[tuple[int, int]]) -> None:
        """Give the room of zeroes back that were found in what has been reserved."""
        done = 0
        for begin, length in [*runs, (window.length, 0)]:
            if begin > done:
                self._write.release(self._start + window.start + done, begin - done)
            done = begin + length

    def _link(self, window: Window, runs: list[tuple[int, int]], places: list[int]) -> None:
        if self._bulk is None:
            return
        with self._lock:
            for (begin, length), place in zip(runs, places, strict=True):
                self._bulk.link(window.start + begin, -(-length // self._unit), place)
