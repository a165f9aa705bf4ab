"""The dirty bit over time, with a clock that the test moves."""

from __future__ import annotations

import asyncio
from errno import ENOSPC

import pytest

from qedasync.engine.sources import RawSource
from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from tests.faults.disks import SIZE, content_of, disk_on, filled, header_of, look, turns
from tests.faults.guest import CLUSTER, ManualClock, raw_backing

NEW = b"n" * CLUSTER
QUIET = 5.0


async def faulty(*, inline: bool = True, backing: str = "") -> FaultStorage:
    return FaultStorage(MemoryStorage(await filled(0, backing=backing), inline=inline))


async def test_bit_is_cleared_after_the_quiet_time_and_not_before() -> None:
    storage, clock = await faulty(), ManualClock()
    async with disk_on(storage, clock=clock, need_check_timeout=QUIET) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await turns(5)
        clock.advance(QUIET - 0.1)
        await turns(5)
        assert header_of(storage).need_check
        before = len(storage.calls)
        clock.advance(0.2)
        await turns(5)
        assert not header_of(storage).need_check
        steps = [call.event for call in storage.calls[before:]]
        assert steps == [Event.FLUSH_TO_DISK, Event.HEADER_UPDATE, Event.FLUSH_TO_DISK]


async def test_another_allocation_starts_the_quiet_time_anew() -> None:
    storage, clock = await faulty(), ManualClock()
    async with disk_on(storage, clock=clock, need_check_timeout=QUIET) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await turns(5)
        clock.advance(QUIET - 1)
        await disk.pwrite(NEW, 6 * CLUSTER)
        clock.advance(QUIET - 1)
        await turns(5)
        assert header_of(storage).need_check
        clock.advance(1.1)
        await turns(5)
        assert not header_of(storage).need_check


async def test_write_in_place_does_not_set_the_bit_nor_keep_it() -> None:
    storage, clock = await faulty(), ManualClock()
    async with disk_on(storage, clock=clock, need_check_timeout=QUIET) as disk:
        await disk.pwrite(NEW, 0)
        assert not header_of(storage).need_check
        await disk.pwrite(NEW, 5 * CLUSTER)
        await turns(5)
        clock.advance(QUIET / 2)
        await disk.pwrite(NEW, 0)
        clock.advance(QUIET / 2 + 0.1)
        await turns(5)
        assert not header_of(storage).need_check


async def test_quiet_time_ends_while_a_group_commits_bit_stays() -> None:
    storage, clock = await faulty(inline=False), ManualClock()
    async with disk_on(storage, clock=clock, need_check_timeout=QUIET) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await turns(5)
        storage.add(Fault("pause", event=Event.L2_UPDATE))
        write = asyncio.create_task(disk.pwrite(NEW, 6 * CLUSTER))
        await storage.wait_paused()
        flushes = storage.count("flush")
        clock.advance(QUIET + 1)
        await turns(10)
        assert header_of(storage).need_check
        storage.resume()
        await write
        await turns(10)
        assert header_of(storage).need_check, "the quiet time begins when the write has ended"
        assert storage.count("flush") == flushes


async def test_quiet_time_ends_between_two_groups_bit_stays() -> None:
    """The timer gets the turn between them: it must see that it is not quiet."""
    storage, clock = await faulty(inline=False), ManualClock()
    async with disk_on(storage, clock=clock, need_check_timeout=QUIET) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await turns(5)
        clock.now += QUIET - 1
        storage.add(Fault("pause", event=Event.L2_UPDATE))
        first = asyncio.create_task(disk.pwrite(NEW, 6 * CLUSTER))
        await storage.wait_paused()
        second = asyncio.create_task(disk.pwrite(NEW, 7 * CLUSTER))
        clock.advance(1)
        await turns(5)
        storage.resume()
        await asyncio.gather(first, second)
        assert storage.count(event=Event.HEADER_UPDATE) == 1


async def test_timer_flush_fails_bit_stays_and_the_next_flush_says_so() -> None:
    storage, clock = await faulty(), ManualClock()
    async with disk_on(storage, fails=True, clock=clock, need_check_timeout=QUIET) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await turns(5)
        storage.add(Fault("error", op="flush", errno=ENOSPC))
        clock.advance(QUIET + 1)
        await turns(5)
        assert header_of(storage).need_check
        with pytest.raises(OSError, match="No space") as caught:
            await disk.flush()
        assert caught.value.errno == ENOSPC
    assert header_of(storage).need_check


async def test_timer_header_write_fails_the_next_flush_says_so_once() -> None:
    storage, clock = await faulty(), ManualClock()
    async with disk_on(storage, clock=clock, need_check_timeout=QUIET) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await turns(5)
        storage.add(Fault("error", event=Event.HEADER_UPDATE))
        clock.advance(QUIET + 1)
        await turns(5)
        assert header_of(storage).need_check
        with pytest.raises(StorageError):
            await disk.flush()
        await disk.flush()
        await disk.pwrite(NEW, 6 * CLUSTER)
    assert not header_of(storage).need_check


async def test_failed_image_timer_leaves_the_bit_set() -> None:
    storage, clock = await faulty(), ManualClock()
    async with disk_on(storage, fails=True, clock=clock, need_check_timeout=QUIET) as disk:
        storage.add(Fault("error", event=Event.L2_UPDATE, once=False))
        with pytest.raises(StorageError):
            await disk.pwrite(NEW, 5 * CLUSTER)
        storage.clear()
        await turns(5)
        clock.advance(QUIET + 1)
        await turns(5)
        assert header_of(storage).need_check
    assert header_of(storage).need_check


@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_write_during_the_timers_work_waits_and_survives(nth: int) -> None:
    """QEMU aborts here (dossier of its quirks: 6). ``nth``: at which of the timer's three calls."""
    storage, clock = await faulty(inline=False), ManualClock()
    async with disk_on(storage, clock=clock, need_check_timeout=QUIET) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await turns(5)
        storage.add(Fault("pause", call=nth))
        clock.advance(QUIET + 1)
        await storage.wait_paused()
        allocating = [asyncio.create_task(disk.pwrite(NEW, i * CLUSTER)) for i in (6, 7)]
        await disk.pwrite(NEW, 0)
        assert await disk.pread(CLUSTER, 0) == NEW
        await turns(10)
        assert not any(task.done() for task in allocating)
        storage.resume()
        await asyncio.gather(*allocating)
        assert header_of(storage).need_check
        assert await disk.pread(3 * CLUSTER, 5 * CLUSTER) == NEW * 3
    assert await look(content_of(storage), 3 * CLUSTER, 5 * CLUSTER) == NEW * 3


@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_close_during_the_timers_work_leaves_a_clean_image(nth: int) -> None:
    storage, clock = await faulty(inline=False), ManualClock()
    async with disk_on(storage, clock=clock, need_check_timeout=QUIET) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await turns(5)
        storage.add(Fault("pause", call=nth))
        clock.advance(QUIET + 1)
        await storage.wait_paused()
        closing = asyncio.create_task(disk.close())
        await turns(5)
        storage.resume()
        await closing
    assert not header_of(storage).need_check
    assert storage.count("close") == 1


async def test_no_timeout_no_timer_and_close_clears_the_bit() -> None:
    storage, clock = await faulty(), ManualClock()
    async with disk_on(storage, clock=clock, need_check_timeout=0) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await turns(5)
        assert clock.sleepers == 0
        assert len(asyncio.all_tasks()) == 1
        clock.advance(1e9)
        await turns(5)
        assert header_of(storage).need_check
    assert not header_of(storage).need_check


async def test_overlay_has_no_timer_and_never_sets_the_bit() -> None:
    storage, clock = await faulty(backing="base.raw"), ManualClock()
    base = RawSource(MemoryStorage(raw_backing(SIZE)), "base.raw")
    async with disk_on(storage, source=base, clock=clock, need_check_timeout=QUIET) as disk:
        await disk.pwrite(NEW, 5 * CLUSTER)
        await disk.write_zeroes(CLUSTER, 9 * CLUSTER)
        await turns(5)
        assert clock.sleepers == 0
    assert storage.count(event=Event.HEADER_UPDATE) == 0


async def test_busy_quiet_busy_sets_the_bit_durably_each_time() -> None:
    storage, clock = await faulty(), ManualClock()
    async with disk_on(storage, clock=clock, need_check_timeout=QUIET) as disk:
        for cluster in (5, 6, 7):
            before = len(storage.calls)
            await disk.pwrite(NEW, cluster * CLUSTER)
            steps = [call.event for call in storage.calls[before:] if call.op != "read"]
            assert steps[:2] == [Event.HEADER_UPDATE, Event.FLUSH_TO_DISK]
            await turns(5)
            clock.advance(QUIET + 1)
            await turns(5)
            assert not header_of(storage).need_check
