"""Runs a workload on an open image and takes the times.

One task for each operation in flight, those of a job all fed from one sequence of operations, as a
job of fio's is. The loop of :meth:`Run._work` is the measuring instrument: what it costs is itself
measured, on an image that does nothing, and stands in the result.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice
from time import perf_counter_ns, time
from typing import Protocol

from qedasync.bench.result import Result, Snapshot
from qedasync.bench.tasks import Job, together
from qedasync.bench.usage import Usage
from qedasync.bench.verify import Ledger
from qedasync.bench.workload import Step, Workload

__all__ = ["Run", "Target"]

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

    async def discard(self, length: int, offset: int) -> None: ...

    async def flush(self) -> None: ...


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
        self._data = _data(workload)

    async def run(self) -> Result:
        """Run to the end, or until :meth:`stop`.

        Raises:
            QEDError: an operation failed, or a check did; the run is over then.
        """
        self.result.overhead_ns = await _own_cost(self._workload)
        await self._operate()
        if len(self.result.writes) or len(self.result.trims):
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
        workload, result = self._workload, self.result
        before, result.started = Usage.now(), time()
        self._begin = perf_counter_ns()
        if not result.interrupted:
            runtime = workload.runtime
            self._deadline = _NEVER if runtime is None else self._begin + int(runtime * _NS)
        watchers = [self._tick(), self._sample()]
        if self._progress is not None:
            watchers.append(self._tell(self._progress))
        await together(self._jobs(), watchers)
        result.elapsed_ns = perf_counter_ns() - self._begin
        result.usage = Usage.now().since(before)
        result.series.add(result.sample(result.elapsed_ns))

    def _jobs(self) -> list[Job]:
        """A coroutine for each operation in flight; more than there are operations are no use."""
        workload = self._workload
        work = self._work if self._ledger is None else self._work_verified
        if workload.rw.trims:
            work = self._work_trimming
        tasks = min(workload.depth, workload.number or workload.depth)
        sequences = [workload.steps(job) for job in range(workload.jobs)]
        return [work(steps) for steps in sequences for _ in range(tasks)]

    async def _work(self, steps: Iterator[Step]) -> None:
        """One operation after another; the hot loop."""
        length, data = self._workload.block_size, self._data
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

    async def _work_trimming(self, steps: Iterator[Step]) -> None:
        """The same where nothing is read or written."""
        length = self._workload.write_length
        discard, done = self._image.discard, self.result.trims.record
        for _, offset in steps:
            start = perf_counter_ns()
            if start >= self._deadline:
                return
            await discard(length, offset)
            done(perf_counter_ns() - start)
            if self._until_flush:
                await self._count_to_flush()

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

    async def _sample(self) -> None:
        series = self.result.series
        while True:
            await asyncio.sleep(series.period)
            series.add(self.result.sample(perf_counter_ns() - self._begin))

    async def _tell(self, progress: Callable[[Snapshot], None]) -> None:
        while True:
            await asyncio.sleep(_PROGRESS)
            progress(self._snapshot())

    def _snapshot(self) -> Snapshot:
        workload = self._workload
        counts = self.result.sample(0).counts
        elapsed = (perf_counter_ns() - self._begin) / _NS
        shares = [0.0]
        if workload.runtime is not None:
            shares.append(elapsed / workload.runtime)
        if workload.number is not None:
            shares.append(sum(counts) / (workload.number * workload.jobs))
        return Snapshot(elapsed, min(1.0, max(shares)), *counts, workload)


def _data(workload: Workload) -> bytes:
    """What every write writes."""
    length = workload.write_length
    if workload.verify or workload.rw.trims or not workload.rw.writes:
        return b""
    if workload.fill is not None:
        return bytes([workload.fill]) * length
    return random.Random(workload.seed).randbytes(length)


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

    async def discard(self, length: int, offset: int) -> None:
        pass

    async def flush(self) -> None:
        pass


_EMPTY = bytearray()


async def _own_cost(workload: Workload) -> float:
    """Nanoseconds that :meth:`Run._work` spends on an operation of its own, on this machine now.

    The least of a few tries: what disturbs them comes from outside.
    """
    run = Run(_Nothing(), workload)
    run._deadline = _NEVER
    work = run._work_trimming if workload.rw.trims else run._work
    steps = list(islice(workload.steps(), _CALIBRATION))
    return min([await _timed(work(iter(steps))) for _ in range(_TRIES)]) / len(steps)
