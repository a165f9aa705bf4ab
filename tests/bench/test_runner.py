"""Runs on an image of bytes in memory that can be told to misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from qedasync.bench import Pattern, Run, Snapshot, VerifyFailed, Workload
from qedasync.errors import StorageError

SIZE = 1 << 20


class FakeImage:
    """Bytes; each call gives the loop a turn, as a busy image does now and then."""

    def __init__(self) -> None:
        self.content = bytearray(SIZE)
        self.calls: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.lose_writes = False
        self.on_call: Callable[[int], None] = lambda number: None

    async def _turn(self, call: str) -> None:
        self.calls.append(call)
        self.on_call(len(self.calls))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1

    async def pread(self, length: int, offset: int) -> bytearray:
        await self._turn("read")
        return self.content[offset : offset + length]

    async def pwrite(self, data: bytes, offset: int) -> int:
        await self._turn("write")
        if not self.lose_writes:
            self.content[offset : offset + len(data)] = data
        return len(data)

    async def discard(self, length: int, offset: int) -> None:
        await self._turn("trim")
        self.content[offset : offset + length] = bytes(length)

    async def flush(self) -> None:
        await self._turn("flush")


def workload(**options: Any) -> Workload:
    return Workload(**{"runtime": None, "number": 400, **options}).fitted(SIZE)


async def test_run_number_does_so_many_and_counts_them() -> None:
    image = FakeImage()
    result = await Run(image, workload(depth=7)).run()
    assert image.calls.count("read") == len(result.reads)
    assert image.calls.count("write") == len(result.writes)
    assert len(result.reads) + len(result.writes) == 400
    assert image.most_in_flight == 7
    assert result.elapsed_ns >= max(result.reads.largest, result.writes.largest) > 0
    assert result.overhead_ns > 0
    assert not result.interrupted


async def test_run_of_writes_ends_with_a_flush_and_of_reads_does_not() -> None:
    writing, reading = FakeImage(), FakeImage()
    result = await Run(writing, workload(rw=Pattern.RANDWRITE)).run()
    assert writing.calls[-1] == "flush"
    assert result.final_flush_ns is not None
    result = await Run(reading, workload(rw=Pattern.RANDREAD)).run()
    assert set(reading.calls) == {"read"}
    assert result.final_flush_ns is None


async def test_run_flush_interval_flushes_after_so_many_writes() -> None:
    image = FakeImage()
    result = await Run(image, workload(rw=Pattern.WRITE, depth=1, flush_interval=100)).run()
    flushes = [number for number, call in enumerate(image.calls) if call == "flush"]
    assert flushes == [100, 201, 302, 403, 404]  # the last one is the end's
    assert len(result.flushes) == 4


@pytest.mark.parametrize("rw", [Pattern.TRIM, Pattern.RANDTRIM])
async def test_run_of_trims_discards_and_flushes(rw: Pattern) -> None:
    image = FakeImage()
    image.content[:] = b"x" * SIZE
    result = await Run(image, workload(rw=rw, number=256, flush_interval=100)).run()
    assert len(result.trims) == image.calls.count("trim") == 256
    assert image.calls.count("flush") == 3
    assert len(result.reads) == len(result.writes) == 0
    assert (image.content.count(b"x") == 0) == (rw is Pattern.TRIM)


async def test_run_of_several_jobs_does_as_many_of_each() -> None:
    image = FakeImage()
    result = await Run(image, workload(jobs=3, depth=2, number=50)).run()
    assert result.total == len([call for call in image.calls if call != "flush"]) == 150
    assert image.most_in_flight == 6


async def test_run_of_two_sizes_reads_and_writes_blocks_of_these() -> None:
    image = FakeImage()
    await Run(image, workload(rw=Pattern.WRITE, write_size=65536, number=1, fill=5)).run()
    assert image.content.count(b"\x05") == 65536


async def test_run_samples_begin_at_nothing_and_end_with_all() -> None:
    result = await Run(FakeImage(), workload()).run()
    first, last = result.series.samples[0], result.series.samples[-1]
    assert (first.elapsed_ns, first.counts) == (0, (0, 0, 0))
    assert last.elapsed_ns == result.elapsed_ns
    assert sum(last.counts) == 400
    assert result.started > 0


async def test_run_depth_beyond_the_number_makes_no_more_tasks() -> None:
    image = FakeImage()
    await Run(image, workload(depth=60_000, number=3)).run()
    assert image.most_in_flight == 3


async def test_run_runtime_ends_an_endless_workload() -> None:
    result = await Run(FakeImage(), workload(number=None, runtime=0.01)).run()
    assert result.elapsed_ns >= 10_000_000
    assert not result.interrupted


@pytest.mark.parametrize("verify", [False, True])
async def test_run_stopped_returns_what_there_is(verify: bool) -> None:
    image = FakeImage()
    run = Run(image, workload(number=10_000, verify=verify))
    image.on_call = lambda number: run.stop() if number == 100 else None
    result = await run.run()
    assert result.interrupted
    assert 100 <= len(result.reads) + len(result.writes) < 300


async def test_run_stopped_before_it_began_does_nothing() -> None:
    image = FakeImage()
    run = Run(image, workload())
    run.stop()
    assert (await run.run()).interrupted
    assert image.calls == []


async def test_run_failing_operation_ends_it_as_itself() -> None:
    image = FakeImage()

    def fail(number: int) -> None:
        if number == 50:
            raise StorageError(5)

    image.on_call = fail
    with pytest.raises(StorageError):
        await Run(image, workload()).run()
    assert len(image.calls) < 400


@pytest.mark.parametrize("rw", [Pattern.RANDRW, Pattern.RW, Pattern.RANDREAD, Pattern.WRITE])
async def test_run_verified_accepts_a_good_image(rw: Pattern) -> None:
    # Few blocks, many tasks: the same block is read and written at once all the time.
    options = workload(rw=rw, verify=True, size=4096 * 20, number=2000, read_percent=50)
    result = await Run(FakeImage(), options).run()
    assert result.verified >= len(result.reads) + 20


async def test_run_verified_finds_lost_writes() -> None:
    image = FakeImage()
    image.lose_writes = True
    with pytest.raises(VerifyFailed):
        await Run(image, workload(rw=Pattern.RANDWRITE, verify=True)).run()


async def test_run_verified_finds_a_damaged_neighbour() -> None:
    image = FakeImage()

    def damage(number: int) -> None:
        if number == 200:
            image.content[:] = bytes(SIZE)

    image.on_call = damage
    with pytest.raises(VerifyFailed):
        await Run(image, workload(verify=True, size=1 << 16)).run()


async def test_run_tells_of_progress_and_watches_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qedasync.bench.runner._PROGRESS", 0)
    told: list[Snapshot] = []
    result = await Run(FakeImage(), workload(number=3000), progress=told.append).run()
    assert told
    assert [now.done for now in told] == sorted(now.done for now in told)
    assert told[-1].reads + told[-1].writes <= 3000
    assert len(result.loop_delay) > 0


async def test_run_failing_progress_ends_it_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qedasync.bench.runner._PROGRESS", 0)

    def fail(now: Snapshot) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await Run(FakeImage(), workload(number=None, runtime=60), progress=fail).run()
