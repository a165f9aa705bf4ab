"""The fast way to copy: threads that read one host file and write another.

For a source whose bytes lie in a file as the guest sees them, and a target that reads as zeroes and
is a raw file, or an image that nobody else has yet. Whatever is not so simple, and everything that
goes wrong, is left to :mod:`qedasync.jobs.copying`, which does it again in its own way and reports.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from qedasync import Disk, Extent
from qedasync.jobs import zeroes
from qedasync.jobs.buffers import new_buffer
from qedasync.jobs.crew import Crew
from qedasync.jobs.lending import HostFile, is_direct, lent

__all__ = ["Window", "pump", "windows"]

_WINDOW = 512 << 10  # bytes; fits in a processor's cache
_RESERVE = 16 << 20
_MAX_CLUSTER = 2 << 20
_MAX_CLUSTERS = 16 << 20  # entries of 8 bytes are kept until the end
_MAP_STEP = 1 << 30


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


def windows(runs: Iterable[Extent], size: int, total: int) -> Iterator[Window]:
    """The windows in which the data of ``runs`` lie; ends before one that is not in the file.

    Args:
        size: of a window, bytes.
        total: size of the disk.
    """
    window = Window(0, 0)
    for run in runs:
        if run.zero:
            continue
        pos = run.start
        while pos < run.end:
            start = pos - pos % size
            if not window.length or window.start != start:
                if window.length:
                    yield window
                window = Window(start, min(size, total - start))
            if not is_direct(run):
                return
            assert run.offset is not None
            stop = min(start + size, run.end)
            window.parts.append((pos - start, run.offset + pos - run.start, stop - pos))
            pos = stop
    if window.length:
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
        self._turn = 0  # number of the window whose clusters come next

    async def run(
        self, source: Disk, tasks: int, progress: Callable[[int], None]
    ) -> tuple[int, int]:
        pos = copied = number = 0
        with Crew(self._move, tasks) as crew:
            while pos < source.size:
                end = min(pos + _MAP_STEP, source.size)
                runs = await source.block_status(pos, end - pos)
                batch = list(windows(runs, self._window, source.size))
                for window in batch:
                    window.number = number
                    number += 1
                if self._bulk is None:
                    reserve_ahead(batch)
                begin, all_of_it = pos, max(len(batch), 1)

                def tick(left: int) -> None:
                    progress(begin + (end - begin) * (all_of_it - left) // all_of_it)  # noqa: B023

                undone = await crew.do(batch, tick)
                reached = min(
                    [*(window.start for window in undone), _direct_end(runs, self._window)]
                )
                copied += sum(window.copied for window in batch if window.start < reached)
                if reached < end:
                    return reached, copied
                pos = end
                progress(pos)
        return pos, copied

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


def _direct_end(runs: list[Extent], size: int) -> int:
    """Where the first window begins that has anything that is not in the source's file."""
    for run in runs:
        if not run.zero and not is_direct(run):
            return run.start - run.start % size
    return runs[-1].end
