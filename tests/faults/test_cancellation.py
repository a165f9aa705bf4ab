"""Cancellation: a write never started or ran to its end, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from qedasync.engine.source import Source
from qedasync.engine.sources import RawSource
from qedasync.events import Event
from qedasync.image import Image, open_image
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.faults.disks import SIZE, content_of, disk_on, filled, look, turns
from tests.faults.guest import CLUSTER, backing_value, raw_backing

NEW = b"n" * CLUSTER
BACKING = "base.raw"

MakeSource = Callable[[], Source | None]


def no_source() -> None:
    """Nothing is below."""


def raw_source() -> Source:
    return RawSource(MemoryStorage(raw_backing(SIZE), inline=False), BACKING)


each_write = pytest.mark.parametrize(
    ("mapped", "cluster", "old", "make_source"),
    [
        pytest.param([0], 0, 1, no_source, id="in-place"),
        pytest.param([0], 5, 0, no_source, id="allocating"),
        pytest.param([], 5, 0, no_source, id="new-table"),
        pytest.param([0], 5, backing_value(5 * CLUSTER), raw_source, id="overlay"),
        pytest.param([], 5, backing_value(5 * CLUSTER), raw_source, id="overlay-new-table"),
    ],
)


@each_write
async def test_write_cancelled_after_any_turn_never_started_or_ran_to_its_end(
    mapped: list[int], cluster: int, old: int, make_source: MakeSource
) -> None:
    base = await filled(*mapped, backing=BACKING if make_source() else "")
    outcomes = set()
    for wait in count():
        content = base.copy()
        storage = FaultStorage(MemoryStorage(content, inline=False))
        async with disk_on(storage, source=make_source()) as disk:
            buffer = bytearray(NEW)
            task = asyncio.create_task(disk.pwrite(buffer, cluster * CLUSTER))
            await turns(wait)
            task.cancel()
            await asyncio.wait([task])
            buffer[:] = b"?" * CLUSTER  # ours again: nobody reads it any more
            await turns(5)
            data = bytes(await disk.pread(CLUSTER, cluster * CLUSTER))
            assert data in (bytes([old]) * CLUSTER, NEW), (wait, data[:1])
        async with disk_on(MemoryStorage(content), source=make_source()) as later:
            assert bytes(await later.pread(CLUSTER, cluster * CLUSTER)) == data
            assert not (await later.check()).corruptions
        outcomes.add((task.cancelled(), data == NEW))
        if not task.cancelled():
            break
    assert (True, False) in outcomes, "never cancelled before it had started"
    assert (False, True) in outcomes


@each_write
async def test_write_cancelled_at_any_storage_call_raises_after_it_has_settled(
    mapped: list[int], cluster: int, old: int, make_source: MakeSource
) -> None:
    base = await filled(*mapped, backing=BACKING if make_source() else "")
    for nth in count(1):
        storage = FaultStorage(MemoryStorage(base.copy(), inline=False))
        async with disk_on(storage, source=make_source()) as disk:
            storage.add(Fault("pause", call=nth))
            task = asyncio.create_task(disk.pwrite(NEW, cluster * CLUSTER))
            paused = asyncio.create_task(storage.wait_paused())
            await asyncio.wait([task, paused], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                storage.clear()
                paused.cancel()
                break
            call = storage.calls[-1]
            task.cancel()
            await turns(5)
            in_a_group = call.event is not Event.L2_LOAD and cluster not in mapped
            assert task.done() is not in_a_group, f"at {call}"
            storage.resume()
            await asyncio.wait([task])
            assert task.cancelled()
            data = bytes(await disk.pread(CLUSTER, cluster * CLUSTER))
            assert data == (NEW if in_a_group else bytes([old]) * CLUSTER), f"at {call}"
    assert nth > 1


async def test_write_over_many_runs_cancelled_leaves_a_prefix_of_whole_runs() -> None:
    """Each run is a write of its own: those that had ended stay, the others never started."""
    base = await filled(1, 3, 5)
    lengths = set()
    for wait in count():
        async with disk_on(MemoryStorage(base.copy(), inline=False)) as disk:
            before = bytes(await disk.pread(7 * CLUSTER, 0))
            task = asyncio.create_task(disk.pwrite(NEW * 7, 0))
            await turns(wait)
            task.cancel()
            await asyncio.wait([task])
            data = bytes(await disk.pread(7 * CLUSTER, 0))
            done = len(data) - len(data.lstrip(b"n"))
            assert done % CLUSTER == 0
            assert data[done:] == before[done:]
            lengths.add(done // CLUSTER)
        if not task.cancelled():
            break
    assert {0, 1, 3, 7} <= lengths


async def test_write_cancelled_again_and_again_still_ends_once_and_late() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(storage) as disk:
        storage.add(Fault("pause", event=Event.L2_UPDATE))
        task = asyncio.create_task(disk.pwrite(NEW, 5 * CLUSTER))
        await storage.wait_paused()
        for _ in range(5):
            task.cancel()
            await turns(2)
            assert not task.done()
        storage.resume()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await disk.pread(CLUSTER, 5 * CLUSTER) == NEW


async def test_member_of_a_group_cancelled_the_others_are_written() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(storage) as disk:
        storage.add(Fault("pause", event=Event.HEADER_UPDATE))
        tasks = [
            asyncio.create_task(disk.pwrite(bytes([i]) * CLUSTER, i * CLUSTER)) for i in range(1, 9)
        ]
        await storage.wait_paused()
        tasks[3].cancel()
        await turns(5)
        storage.resume()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = [isinstance(result, asyncio.CancelledError) for result in results]
        assert cancelled == [i == 3 for i in range(8)]
        expected = b"".join(bytes([i]) * CLUSTER for i in range(1, 9))
        assert await disk.pread(8 * CLUSTER, CLUSTER) == expected


async def test_write_cancelled_while_it_queues_was_never_started() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(storage) as disk:
        storage.add(Fault("pause", event=Event.HEADER_UPDATE))
        first = asyncio.create_task(disk.pwrite(NEW, CLUSTER))
        await storage.wait_paused()
        tasks = [asyncio.create_task(disk.pwrite(NEW, i * CLUSTER)) for i in (2, 3, 4)]
        await turns(3)
        tasks[1].cancel()
        await turns(2)
        assert tasks[1].cancelled()
        storage.resume()
        await asyncio.gather(first, tasks[0], tasks[2])
        assert await disk.pread(4 * CLUSTER, CLUSTER) == NEW * 2 + bytes(CLUSTER) + NEW
        assert disk.stats.clusters_allocated == 3


async def test_all_queued_writes_cancelled_queue_goes_on() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(storage) as disk:
        async with disk._engine.queue.turn:
            task = asyncio.create_task(disk.pwrite(NEW, CLUSTER))
            await turns(5)
            task.cancel()
            await asyncio.wait([task])
        await turns(5)
        await disk.pwrite(NEW, 2 * CLUSTER)
        assert await disk.pread(2 * CLUSTER, CLUSTER) == bytes(CLUSTER) + NEW


async def test_time_limit_on_a_slow_write_raises_timeout_error_after_it_has_settled() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(storage) as disk:
        storage.add(Fault("pause", event=Event.L2_UPDATE))
        deadline = asyncio.timeout(None)

        async def write() -> None:
            async with deadline:
                await disk.pwrite(NEW, 5 * CLUSTER)

        task = asyncio.create_task(write())
        await storage.wait_paused()
        deadline.reschedule(asyncio.get_running_loop().time())
        await turns(10)
        assert deadline.expired()
        assert not task.done()
        storage.resume()
        with pytest.raises(TimeoutError):
            await task
        assert await disk.pread(CLUSTER, 5 * CLUSTER) == NEW


async def test_task_group_whose_other_task_fails_leaves_the_write_whole() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))

    async def fail() -> None:
        await storage.wait_paused()
        storage.resume()
        raise LookupError

    async def run(disk: Image) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(disk.pwrite(NEW, 5 * CLUSTER))
            tasks.create_task(fail())

    async with disk_on(storage) as disk:
        storage.add(Fault("pause", event=Event.L2_UPDATE))
        with pytest.raises(ExceptionGroup) as caught:
            await run(disk)
        assert caught.group_contains(LookupError)
        assert await disk.pread(CLUSTER, 5 * CLUSTER) == NEW


async def test_read_cancelled_after_any_turn_leaves_the_buffer_alone() -> None:
    base = await filled(*range(0, 8, 2), backing=BACKING)
    for wait in count():
        storage = MemoryStorage(base.copy(), inline=False)
        async with disk_on(storage, source=raw_source()) as disk:
            buffer = bytearray(8 * CLUSTER)
            task = asyncio.create_task(disk.readinto(buffer, 0))
            await turns(wait)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                break
            buffer[:] = b"?" * len(buffer)
            await turns(5)
            assert buffer == b"?" * len(buffer)
            assert await disk.pread(1, 0) == b"\1"
    assert wait > 2


async def test_reader_that_loads_a_slice_cancelled_another_reader_still_gets_it() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0, 1), inline=False))
    async with disk_on(storage) as disk:
        storage.add(Fault("pause", event=Event.L2_LOAD))
        first = asyncio.create_task(disk.pread(512, 0))
        second = asyncio.create_task(disk.pread(512, CLUSTER))
        await storage.wait_paused()
        first.cancel()
        await turns(3)
        storage.resume()
        assert await second == b"\2" * 512
        assert first.cancelled()
        assert storage.count(event=Event.L2_LOAD) == 1


@pytest.mark.parametrize(
    "request_of",
    [
        pytest.param(lambda disk: disk.flush(), id="flush"),
        pytest.param(lambda disk: disk.write_zeroes(6 * CLUSTER + 512, 256), id="zeroes"),
        pytest.param(lambda disk: disk.discard(4 * CLUSTER, 0), id="discard"),
        pytest.param(lambda disk: disk.truncate(2 * SIZE), id="grow"),
        pytest.param(lambda disk: disk.check(), id="check"),
        pytest.param(lambda disk: disk.check(repair=True), id="repair"),
        pytest.param(lambda disk: disk.block_status(0, SIZE), id="block-status"),
    ],
)
async def test_other_request_cancelled_after_any_turn_leaves_the_image_usable(
    request_of: Callable[[Image], Coroutine[Any, Any, object]],
) -> None:
    base = await filled(0, 1, 2)
    for wait in count():
        content = base.copy()
        async with disk_on(MemoryStorage(content, inline=False)) as disk:
            await disk.pwrite(NEW, 3 * CLUSTER)
            task = asyncio.create_task(request_of(disk))
            await turns(wait)
            task.cancel()
            await asyncio.wait([task])
            await disk.pwrite(NEW, 10 * CLUSTER)
            await disk.flush()
            assert await disk.pread(CLUSTER, 10 * CLUSTER) == NEW
        assert await look(content, CLUSTER, 10 * CLUSTER) == NEW
        if not task.cancelled():
            break
    assert wait >= 1


async def test_repair_cancelled_while_it_waits_for_a_write_lets_everybody_in_again() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(storage) as disk:
        storage.add(Fault("pause", event=Event.WRITE_AIO))
        write = asyncio.create_task(disk.pwrite(NEW, 0))
        await storage.wait_paused()
        repair = asyncio.create_task(disk.check(repair=True))
        await turns(3)
        assert not repair.done()
        repair.cancel()
        await turns(3)
        outside = asyncio.create_task(disk.pread(CLUSTER, 0))
        await turns(3)
        storage.resume()
        await write
        with pytest.raises(asyncio.CancelledError):
            await repair
        assert await outside == NEW
        await disk.pwrite(NEW, CLUSTER)


async def test_request_cancelled_at_the_shut_gate_never_gets_in() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(storage) as disk:
        async with disk._engine.exclusive():
            task = asyncio.create_task(disk.pwrite(NEW, 0))
            await turns(3)
            task.cancel()
            await turns(1)
            assert task.cancelled()
        assert await disk.pread(CLUSTER, 0) == b"\1" * CLUSTER


# ------------------------------------------------------------ the loop's end


def end_normally() -> None:
    """The main task returns."""


def end_interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", [end_normally, end_interrupted], ids=["return", "interrupt"])
@pytest.mark.parametrize("overlay", [False, True], ids=["alone", "overlay"])
def test_loop_ends_while_writes_are_in_flight_file_stays_sound(
    end: Callable[[], None], overlay: bool
) -> None:
    """asyncio.run cancels everybody, the image's own tasks too."""
    backing = BACKING if overlay else ""
    base = asyncio.run(filled(0, 1, backing=backing))
    for wait in range(40):
        content = base.copy()
        try:
            asyncio.run(_leave_in_the_middle(content, wait, end, overlay))
        except KeyboardInterrupt:
            assert end is end_interrupted
        data = asyncio.run(look(content, 12 * CLUSTER, 0))
        for cluster in range(12):
            piece = data[cluster * CLUSTER : (cluster + 1) * CLUSTER]
            old = bytes([cluster + 1 if cluster < 2 else 0]) * CLUSTER
            assert piece in (old, NEW), f"cluster {cluster} after {wait} turns"


async def _leave_in_the_middle(
    content: SparseBytes, wait: int, end: Callable[[], None], overlay: bool
) -> None:
    storage = MemoryStorage(content, inline=False)
    disk = await open_image("d", "r+", storage=storage, backing=False)
    if overlay:
        disk._engine.attach(raw_source())
    tasks = [asyncio.create_task(disk.pwrite(NEW, i * CLUSTER)) for i in range(1, 12)]
    await turns(wait)
    end()
    del tasks


@pytest.mark.parametrize("end", [end_normally, end_interrupted], ids=["return", "interrupt"])
def test_loop_ends_under_an_open_image_in_a_with_block_closes_it_cleanly(
    end: Callable[[], None],
) -> None:
    base = asyncio.run(filled(0))
    for wait in range(12):
        storage = FaultStorage(MemoryStorage(base.copy(), inline=False))

        async def use(storage: FaultStorage = storage) -> None:
            async with open_image("d", "r+", storage=storage, backing=False) as disk:
                for cluster in range(1, 50):
                    await disk.pwrite(NEW, cluster * CLUSTER)

        async def main(use: Callable[[], Awaitable[None]] = use, wait: int = wait) -> None:
            task = asyncio.ensure_future(use())
            await turns(10 + wait)
            assert not task.done()
            end()

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            assert end is end_interrupted
        assert storage.count("close") == 1
        assert asyncio.run(look(content_of(storage), CLUSTER, 0)) == b"\1" * CLUSTER


@pytest.mark.parametrize("kind", ["posix", "aiofiles"])
def test_loop_interrupted_over_a_real_file_releases_it_and_leaves_it_sound(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk.qed"
    path.write_bytes(bytes(asyncio.run(filled(0))))

    async def use(wait: int) -> None:
        async with open_image(path, "r+", storage=kind) as disk:
            async with asyncio.TaskGroup() as tasks:
                for cluster in range(1, 50):
                    tasks.create_task(disk.pwrite(NEW, cluster * CLUSTER))
                await turns(wait)
                raise KeyboardInterrupt

    for wait in range(6):
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(use(wait))
    data = asyncio.run(look(SparseBytes(path.read_bytes()), 50 * CLUSTER, 0))
    for pos in range(CLUSTER, len(data), CLUSTER):
        assert data[pos : pos + CLUSTER] in (NEW, bytes(CLUSTER))
