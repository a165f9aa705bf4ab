"""The run of ``qemu-img bench``: requests at equal steps through an image, so many at a time.

:class:`~qedasync.bench.runner.Run` takes the time of every request; this takes only that of all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from time import perf_counter

from qedasync.bench.runner import Target
from qedasync.bench.tasks import first_leaf, together
from qedasync.bench.workload import MAX_IN_FLIGHT
from qedasync.errors import RequestError

__all__ = ["Stream", "run_stream"]


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests in the words of ``qemu-img bench``.

    Attributes:
        count: of requests.
        depth: requests in flight; more than ``MAX_IN_FLIGHT`` are taken for that many.
        length: bytes of each.
        step: from one's start to the next one's; after the image's end it goes on from the front.
        offset: where the first one starts.
        writes: they write.
        fill: the byte that is written.
        flush_interval: a flush after so many requests, 0 for none; at least ``depth``.
        drain: before a flush, wait for the requests in flight.
    """

    count: int = 75000
    depth: int = 64
    length: int = 4096
    step: int = 4096
    offset: int = 0
    writes: bool = False
    fill: int = 0
    flush_interval: int = 0
    drain: bool = True

    def positions(self, image_size: int) -> Iterator[int]:
        """Where the requests start."""
        at = self.offset
        for _ in range(self.count):
            yield at
            at = (at + self.step) % max(image_size, 1)

    def portions(self) -> Iterator[int]:
        """How many requests there are before each flush: full intervals at the end, as qemu-img
        counts from there, and what is left over first."""
        interval = self.flush_interval
        if not interval:
            yield self.count
            return
        first = self.count % interval
        # The first requests in flight are begun together, whatever the interval.
        if first < min(self.depth, self.count):
            first = min(self.count, first + interval)
        yield first
        yield from repeat(interval, (self.count - first) // interval)


async def run_stream(image: Target, stream: Stream, image_size: int) -> float:
    """Run it; answers how many seconds it took, without the flush after the last request.

    Raises:
        QEDError: a request failed; the run is over then.
    """
    if stream.count and stream.length > image_size:
        # Before anyone makes a buffer of that size.
        raise RequestError(f"{stream.length} bytes are more than the image has")
    positions = stream.positions(image_size)
    data = bytes([stream.fill]) * (stream.length if stream.writes else 0)
    if not stream.flush_interval or not stream.drain:
        return await _run_undrained(image, stream, positions, data)
    start = perf_counter()
    for number, portion in enumerate(stream.portions()):
        if number:
            await image.flush()
        await _run_portion(image, stream, islice(positions, portion), data)
    took = perf_counter() - start
    await image.flush()
    return took


async def _run_undrained(
    image: Target, stream: Stream, positions: Iterator[int], data: bytes
) -> float:
    """The same with flushes beside the requests, or without any."""

    def all_positions(flushes: asyncio.TaskGroup) -> Iterator[int]:
        for portion in stream.portions():
            yield from islice(positions, portion)
            if stream.flush_interval:
                flushes.create_task(image.flush())

    try:
        async with asyncio.TaskGroup() as flushes:
            start = perf_counter()
            await _run_portion(image, stream, all_positions(flushes), data)
            took = perf_counter() - start
        return took
    except BaseExceptionGroup as failures:
        raise first_leaf(failures) from None


async def _run_portion(
    image: Target, stream: Stream, positions: Iterator[int], data: bytes
) -> None:
    length, pread, pwrite = stream.length, image.pread, image.pwrite

    async def read() -> None:
        for at in positions:
            await pread(length, at)

    async def write() -> None:
        for at in positions:
            await pwrite(data, at)

    work = write if stream.writes else read
    await together([work() for _ in range(min(stream.depth, stream.count, MAX_IN_FLIGHT))], [])
