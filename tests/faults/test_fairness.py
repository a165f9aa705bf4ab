"""Fairness, by count: nobody who finishes inline keeps the others from their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qedasync.engine.budget import INLINE_REQUESTS
from qedasync.image import Image
from qedasync.storage.memory import MemoryStorage
from tests.faults.disks import SIZE, disk_on, filled
from tests.faults.guest import CLUSTER

TASKS = 64

BOUND = INLINE_REQUESTS + TASKS
"""Reads that may happen between two turns of the loop: the budget, and one for each task."""


class Traffic:
    """Readers that go flat out, and somebody on the loop who watches them.

    Attributes:
        reads: how many each reader has done.
        largest: the most reads between two turns of the loop.
        ticks: turns of the loop.
    """

    def __init__(self, disk: Image) -> None:
        self.disk = disk
        self.reads: list[int] = []
        self.largest = 0
        self.ticks = 0
        self._enough = False

    @property
    def total(self) -> int:
        return sum(self.reads)

    async def read(self, pos: int, length: int) -> None:
        """Read until told to stop."""
        number = len(self.reads)
        self.reads.append(0)
        while not self._enough:
            await self.disk.pread(length, pos)
            self.reads[number] += 1

    async def tick(self, until: int) -> None:
        """Count turns until there were so many reads."""
        seen = self.total
        while seen < until:
            await asyncio.sleep(0)
            self.ticks += 1
            self.largest = max(self.largest, self.total - seen)
            seen = self.total
        self._enough = True

    def stop(self) -> None:
        """The readers end after their next read."""
        self._enough = True


@asynccontextmanager
async def traffic() -> AsyncIterator[Traffic]:
    """On a disk with data in clusters 0 to 15, ZERO ones from 16 on and nothing from 32 on."""
    async with disk_on(MemoryStorage(await filled(*range(16)))) as disk:
        await disk.write_zeroes(16 * CLUSTER, 16 * CLUSTER)
        for pos in range(0, SIZE, CLUSTER):
            await disk.pread(512, pos)
        yield Traffic(disk)


@pytest.mark.parametrize("cluster", [0, 16, 32], ids=["data", "zero", "unallocated"])
@pytest.mark.parametrize("tasks", [1, 2, 7, TASKS])
async def test_inline_readers_flat_out_loop_turns_within_the_budget(
    cluster: int, tasks: int
) -> None:
    async with traffic() as load:
        async with asyncio.TaskGroup() as group:
            for i in range(tasks):
                group.create_task(load.read((cluster + i % 16) * CLUSTER, 512))
            group.create_task(load.tick(30 * BOUND))
        assert load.largest <= INLINE_REQUESTS + tasks
        assert load.ticks >= 30 * BOUND // (INLINE_REQUESTS + tasks)


async def test_inline_readers_many_use_the_budget_and_not_much_less() -> None:
    """A budget that is never used would be a turn for each read."""
    async with traffic() as load:
        async with asyncio.TaskGroup() as group:
            for i in range(TASKS):
                group.create_task(load.read(i % 16 * CLUSTER, 512))
            group.create_task(load.tick(30 * BOUND))
        assert load.total / load.ticks >= INLINE_REQUESTS / 3


async def test_inline_readers_flat_out_share_evenly() -> None:
    async with traffic() as load:
        async with asyncio.TaskGroup() as group:
            for i in range(TASKS):
                group.create_task(load.read(i % 16 * CLUSTER, 512))
            group.create_task(load.tick(40 * BOUND))
        assert max(load.reads) <= 1.25 * min(load.reads) + INLINE_REQUESTS


async def test_long_reads_count_for_more_than_short_ones() -> None:
    async with traffic() as load:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(load.read(0, 64 * CLUSTER))
            group.create_task(load.tick(400))
        assert load.largest <= INLINE_REQUESTS // 8 + 4


@pytest.mark.parametrize("what", ["flush", "block_status"])
async def test_requests_with_nothing_to_wait_for_give_the_loop_turns(what: str) -> None:
    async with traffic() as load:
        disk = load.disk
        await disk.flush()
        turns = 0
        running = True

        async def tick() -> None:
            nonlocal turns
            while running:
                turns += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        for _ in range(5 * INLINE_REQUESTS):
            await (disk.flush() if what == "flush" else disk.block_status(0, CLUSTER))
        running = False
        await ticker
        assert turns >= 5


async def test_greedy_reader_does_not_starve_a_modest_one() -> None:
    async with traffic() as load:
        greedy = asyncio.create_task(load.read(0, 512))
        for _ in range(50):
            await load.disk.pread(512, 32 * CLUSTER)
            await asyncio.sleep(0)
        load.stop()
        await greedy
        assert load.total <= 2 * 51 * BOUND, "two turns a read: one to pause, one to sleep"


@pytest.mark.parametrize("cluster", [0, 40], ids=["in-place", "allocating"])
async def test_writer_beside_inline_readers_gets_on(cluster: int) -> None:
    """Each write takes a few turns of the loop, however many read."""
    turns_per_write = 12
    async with traffic() as load:
        async with asyncio.TaskGroup() as group:
            for i in range(TASKS):
                group.create_task(load.read(i % 16 * CLUSTER, 512))
            await asyncio.sleep(0)
            begun = load.total
            for i in range(20):
                await load.disk.pwrite(b"w" * CLUSTER, (cluster + i) * CLUSTER)
            load.stop()
            during = load.total - begun
        assert during <= 20 * turns_per_write * BOUND


async def test_reader_beside_a_stalled_allocating_write_is_not_held_up() -> None:
    async with traffic() as load, load.disk._engine.queue.turn:
        write = asyncio.create_task(load.disk.pwrite(b"w" * CLUSTER, 40 * CLUSTER))
        async with asyncio.TaskGroup() as group:
            for i in range(TASKS):
                group.create_task(load.read(i % 16 * CLUSTER, 512))
            group.create_task(load.tick(10 * BOUND))
        assert not write.done()
        write.cancel()
        await asyncio.wait([write])


async def test_budget_of_one_image_is_not_the_other_s() -> None:
    async with traffic() as one, traffic() as other:
        async with asyncio.TaskGroup() as group:
            for load in (one, other):
                for i in range(8):
                    group.create_task(load.read(i * CLUSTER, 512))
            group.create_task(one.tick(20 * BOUND))
            group.create_task(other.tick(20 * BOUND))
        assert one.largest <= INLINE_REQUESTS + 8
        assert other.largest <= INLINE_REQUESTS + 8
