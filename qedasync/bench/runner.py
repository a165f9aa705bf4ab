"""Runs a workload on an open image and takes the times.

One task for each operation in flight, all fed from one sequence of operations, as one job of fio's
is. The loop of :meth:`Run._work` is the measuring instrument: what it costs is itself measured, on
an image that does nothing, and stands in the result.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter_ns
from typing import Protocol, TypeAlias

from qedasync.bench.histogram import Histogram
from qedasync.bench.verify import Ledger
from qedasync.bench.workload import Step, Workload

__all__ = ["Run", "Result", "Snapshot", "Target"]

Job: TypeAlias = Coroutine[None, None, None]

_TICK = 0.002  # seconds between looks at the loop's delay
_PROGRESS = 0.5  # seconds between calls of progress; drawing the line takes a ms
_CALIBRATION = 1_000  # operations to measure the loop's own cost by
_TRIES = 5
_NS = 1_000_000_000
_NEVER = 1 << 62  # a time to come; an int, because the hot loop compares it


class Target(Protocol):
    """What a run asks of an image; :class:`qedasync.Image` has it."""

    async def pread(self, length: int, offset: int) -> bytearray: ...

    async def pwrite(self, data: bytes, offset: int) -> int: ...

    async def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a run is.

    Attributes:
        elapsed: seconds since it began.
        done: share of the run that is over, 0 to 1.
        reads, writes: operations finished.
        block_size: bytes of each.
    """

    elapsed: float
    done: float
    reads: int
    writes: int
    block_size: int


@dataclass(slots=True)
class Result:
    """What a run measured. Every time is in nanoseconds.

    Attributes:
        workload: what was run, fitted to the image.
        reads, writes, flushes: how long each operation took.
        loop_delay: how late a timer of 2 ms was; the loops' timers are good to about 1 ms.
        elapsed_ns: from the first operation's start to the last one's end.
        final_flush_ns: the flush after the last write; None if nothing was written.
        overhead_ns: what the measuring loop itself costs for each operation.
        verified: reads that were checked against what had been written.
        interrupted: stopped before its time.
    """

    workload: Workload
    reads: Histogram = field(default_factory=Histogram)
    writes: Histogram = field(default_factory=Histogram)
    flushes: Histogram = field(default_factory=Histogram)
    loop_delay: Histogram = field(default_factory=Histogram)
    elapsed_ns: int = 0
    final_flush_ns: int | None = None
    overhead_ns: float = 0.0
    verified: int = 0
    interrupted: bool = False


class Run:
    """One run of a workload on an image.

    Args:
        image: open, and writable if the workload writes.
        workload: fitted to the image.
        progress: called twice a second.
    """

    def __init__(
        self,
        image: Target,
        workload: Workload,
        *,
        progress: Callable[[Snapshot], None] | None = None,
    ) -> None:
        self.result = Result(workload)
        self._image = image
        self._workload = workload
        self._progress = progress
        self._ledger = Ledger(workload.block_size) if workload.verify else None
        self._begin = 0
        self._deadline = 0
        self._until_flush = workload.flush_interval

    async def run(self) -> Result:
        """Run to the end, or until :meth:`stop`.

        Raises:
            QEDError: an operation failed, or a check did; the run is over then.
        """
        self.result.overhead_ns = await _own_cost(self._workload)
        await self._operate()
        if len(self.result.writes):
            self.result.final_flush_ns = await _timed(self._image.flush())
        if self._ledger is not None:
            await self._verify_all(self._ledger)
            self.result.verified = self._ledger.checked
        return self.result

    def stop(self) -> None:
        """Begin no further operation; :meth:`run` returns what there is."""
        self._deadline = -1
        self.result.interrupted = True

    async def _operate(self) -> None:
        """The measured part."""
        steps = self._workload.steps()
        self._begin = perf_counter_ns()
        if not self.result.interrupted:
            runtime = self._workload.runtime
            self._deadline = _NEVER if runtime is None else self._begin + int(runtime * _NS)
        work = self._work if self._ledger is None else self._work_verified
        watchers = [self._tick()]
        if self._progress is not None:
            watchers.append(self._tell(self._progress))
        await _together([work(steps) for _ in range(self._workload.depth)], watchers)
        self.result.elapsed_ns = perf_counter_ns() - self._begin

    async def _work(self, steps: Iterator[Step]) -> None:
        """One operation after another; the hot loop."""
        length = self._workload.block_size
        data = random.Random(self._workload.seed).randbytes(length)
        pread, pwrite = self._image.pread, self._image.pwrite
        read_done, write_done = self.result.reads.record, self.result.writes.record
        for writes, offset in steps:
            start = perf_counter_ns()
            if start >= self._deadline:
                return
            if writes:
                await pwrite(data, offset)
                write_done(perf_counter_ns() - start)
                if self._until_flush:
                    await self._count_to_flush()
            else:
                await pread(length, offset)
                read_done(perf_counter_ns() - start)

    async def _work_verified(self, steps: Iterator[Step]) -> None:
        """The same with stamps; a write to a block that is being written is left out."""
        ledger, length = self._ledger, self._workload.block_size
        assert ledger is not None
        for writes, offset in steps:
            if perf_counter_ns() >= self._deadline:
                return
            data = ledger.begin_write(offset) if writes else None
            oldest = ledger.begin_read(offset)
            start = perf_counter_ns()
            if data is not None:
                await self._image.pwrite(data, offset)
                self.result.writes.record(perf_counter_ns() - start)
                ledger.end_write(offset)
                if self._until_flush:
                    await self._count_to_flush()
            elif not writes:
                found = await self._image.pread(length, offset)
                self.result.reads.record(perf_counter_ns() - start)
                ledger.end_read(offset, oldest, found)

    async def _count_to_flush(self) -> None:
        """Flush if this was the last write of an interval."""
        self._until_flush -= 1
        if self._until_flush == 0:
            self._until_flush = self._workload.flush_interval
            self.result.flushes.record(await _timed(self._image.flush()))

    async def _verify_all(self, ledger: Ledger) -> None:
        """Read every block whose content is known."""
        length = self._workload.block_size
        for offset in ledger.offsets():
            oldest = ledger.begin_read(offset)
            ledger.end_read(offset, oldest, await self._image.pread(length, offset))

    async def _tick(self) -> None:
        while True:
            due = perf_counter_ns() + int(_TICK * _NS)
            await asyncio.sleep(_TICK)
            self.result.loop_delay.record(max(0, perf_counter_ns() - due))

    async def _tell(self, progress: Callable[[Snapshot], None]) -> None:
        while True:
            await asyncio.sleep(_PROGRESS)
            progress(self._snapshot())

    def _snapshot(self) -> Snapshot:
        workload, reads, writes = self._workload, len(self.result.reads), len(self.result.writes)
        elapsed = (perf_counter_ns() - self._begin) / _NS
        shares = [0.0]
        if workload.runtime is not None:
            shares.append(elapsed / workload.runtime)
        if workload.number is not None:
            shares.append((reads + writes) / workload.number)
        return Snapshot(elapsed, min(1.0, max(shares)), reads, writes, workload.block_size)


async def _together(jobs: list[Job], watchers: list[Job]) -> None:
    """Run all jobs, and the watchers meanwhile; the first failure ends all and leaves as itself."""
    try:
        async with asyncio.TaskGroup() as watching:
            watches = [watching.create_task(watcher) for watcher in watchers]
            async with asyncio.TaskGroup() as working:
                for job in jobs:
                    working.create_task(job)
            for watch in watches:
                watch.cancel()
    except BaseExceptionGroup as failures:
        raise _first_leaf(failures) from None


def _first_leaf(error: BaseException) -> BaseException:
    """The first exception in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _timed(operation: Coroutine[None, None, None]) -> int:
    start = perf_counter_ns()
    await operation
    return perf_counter_ns() - start


class _Nothing:
    """An image that does nothing, to see what measuring costs."""

    async def pread(self, length: int, offset: int) -> bytearray:
        return _EMPTY

    async def pwrite(self, data: bytes, offset: int) -> int:
        return 0

    async def flush(self) -> None:
        pass


_EMPTY = bytearray()


async def _own_cost(workload: Workload) -> float:
    """Nanoseconds that :meth:`Run._work` spends on an operation of its own, on this machine now.

    The least of a few tries: what disturbs them comes from outside.
    """
    run = Run(_Nothing(), workload)
    run._deadline = _NEVER
    steps = list(islice(workload.steps(), _CALIBRATION))
    return min([await _timed(run._work(iter(steps))) for _ in range(_TRIES)]) / len(steps)
