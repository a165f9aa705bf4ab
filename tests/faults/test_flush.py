"""What is durable when: the order of writes and flushes, and flushes that fail."""

from __future__ import annotations

import asyncio
from errno import EIO, ENOSPC

import pytest

from qedasync.engine.sources import RawSource
from qedasync.errors import ImageFailed, StorageError
from qedasync.events import Event
from qedasync.image import open_image
from qedasync.storage.faults import Call, Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from tests.faults.disks import SIZE, content_of, disk_on, filled, header_of, look, turns
from tests.faults.guest import CLUSTER, raw_backing

NEW = b"n" * CLUSTER
BACKING = "base.raw"

FLUSH = Event.FLUSH_TO_DISK


def changes(calls: list[Call]) -> list[Event | None]:
    """The events of the calls that change the file or flush it, in order."""
    return [call.event for call in calls if call.op not in ("read", "next_data", "close")]


async def test_first_allocation_need_check_is_durable_before_anything_else() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    async with disk_on(storage) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        assert changes(storage.calls) == [
            Event.HEADER_UPDATE,
            FLUSH,
            Event.CLUSTER_ALLOC,
            Event.WRITE_AIO,
            Event.L2_UPDATE,
        ]


async def test_later_allocations_of_a_busy_period_flush_nothing() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    async with disk_on(storage) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        before = len(storage.calls)
        await disk.pwrite(NEW, 6 * CLUSTER)
        assert changes(storage.calls[before:]) == [
            Event.CLUSTER_ALLOC,
            Event.WRITE_AIO,
            Event.L2_UPDATE,
        ]


async def test_new_table_is_durable_before_l1_points_to_it() -> None:
    storage = FaultStorage(MemoryStorage(await filled()))
    async with disk_on(storage) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        steps = changes(storage.calls)
        assert steps[-3:] == [Event.L2_ALLOC_WRITE, FLUSH, Event.L1_UPDATE]


async def test_overlay_data_is_durable_before_it_is_reachable_and_need_check_is_not_used() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0, backing=BACKING)))
    base = RawSource(MemoryStorage(raw_backing(SIZE)), BACKING)
    async with disk_on(storage, source=base) as disk:
        await disk.pwrite(b"x" * 512, 5 * CLUSTER + 512)
        assert changes(storage.calls) == [
            Event.CLUSTER_ALLOC,
            Event.COW_WRITE,
            Event.WRITE_AIO,
            Event.COW_WRITE,
            FLUSH,
            Event.L2_UPDATE,
        ]
        assert not header_of(storage).need_check


async def test_overlay_group_flushes_once_for_all() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0, backing=BACKING), inline=False))
    base = RawSource(MemoryStorage(raw_backing(SIZE), inline=False), BACKING)
    async with disk_on(storage, source=base) as disk:
        requests = [disk.pwrite(b"x" * 512, i * CLUSTER) for i in range(5, 30)]
        await asyncio.gather(*requests)
        assert storage.count("flush") == 1


async def test_write_through_every_write_is_durable_when_it_returns() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    async with disk_on(storage, cache="writethrough") as disk:
        for pos in (0, 5 * CLUSTER, 6 * CLUSTER):
            await disk.pwrite(NEW, pos)
            assert changes(storage.calls)[-1] is FLUSH
        await disk.write_zeroes(CLUSTER, 0)
        assert changes(storage.calls)[-1] is FLUSH


async def test_write_through_flush_fails_the_write_raises() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    async with disk_on(storage, fails=True, cache="writethrough") as disk:
        storage.add(Fault("error", op="flush", errno=ENOSPC))
        with pytest.raises(StorageError) as caught:
            await disk.pwrite(NEW, 0)
        assert caught.value.errno == ENOSPC


async def test_unsafe_cache_never_flushes() -> None:
    storage = FaultStorage(MemoryStorage(await filled()))
    async with disk_on(storage, cache="unsafe") as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await disk.flush()
    assert storage.count("flush") == 0
    assert await look(content_of(storage), CLUSTER, 5 * CLUSTER) == NEW


async def test_read_only_image_flush_does_nothing() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    async with open_image("d", storage=storage, backing=False) as disk:
        await disk.flush()
    assert not changes(storage.calls)


@pytest.mark.parametrize("action", ["error", "error-after"])
async def test_flush_fails_image_refuses_writes_and_reads_go_on(action: str) -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    async with disk_on(storage, fails=True) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        storage.add(Fault(action, op="flush", errno=EIO))  # type: ignore[arg-type]
        with pytest.raises(StorageError) as caught:
            await disk.flush()
        assert caught.value.errno == EIO
        for request in (
            disk.flush(),
            disk.pwrite(NEW, 0),
            disk.pwrite(NEW, 9 * CLUSTER),
            disk.write_zeroes(CLUSTER, 0),
            disk.discard(CLUSTER, 0),
            disk.truncate(2 * SIZE),
        ):
            with pytest.raises(ImageFailed) as refused:
                await request
            assert refused.value.errno == EIO
        assert await disk.pread(CLUSTER, 5 * CLUSTER) == NEW
        assert await disk.pread(CLUSTER, 0) == b"\1" * CLUSTER
    assert header_of(storage).need_check


async def test_flush_fails_writes_that_queue_meanwhile_are_refused_too() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(storage, fails=True) as disk:
        storage.add(Fault("pause", op="flush"), Fault("error", op="flush"))
        first = asyncio.create_task(disk.pwrite(NEW, 5 * CLUSTER))  # flushes NEED_CHECK
        await storage.wait_paused()
        second = asyncio.create_task(disk.pwrite(NEW, 6 * CLUSTER))
        await turns(3)
        storage.resume()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(result) for result in results] == [StorageError, ImageFailed]
        assert await disk.pread(2 * CLUSTER, 5 * CLUSTER) == bytes(2 * CLUSTER)


async def test_flush_while_writes_are_in_flight_waits_for_none_of_them() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(storage) as disk:
        storage.add(Fault("pause", event=Event.WRITE_AIO), Fault("pause", event=Event.L2_UPDATE))
        in_place = asyncio.create_task(disk.pwrite(NEW, 0))
        await storage.wait_paused()
        allocating = asyncio.create_task(disk.pwrite(NEW, 5 * CLUSTER))
        await storage.wait_paused(2)
        await disk.flush()
        assert not in_place.done()
        assert not allocating.done()
        storage.resume()
        await asyncio.gather(in_place, allocating)


async def test_grow_zeroes_are_durable_before_the_size_and_the_size_on_return() -> None:
    storage = FaultStorage(MemoryStorage(await filled(SIZE // CLUSTER - 1)))
    async with disk_on(storage) as disk:
        await disk.truncate(2 * SIZE)
        steps = changes(storage.calls)
        assert steps[-3:] == [FLUSH, Event.HEADER_UPDATE, FLUSH]
        assert header_of(storage).image_size == 2 * SIZE
