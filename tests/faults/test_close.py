"""Closing: waits, flushes, clears NEED_CHECK, releases; whatever goes wrong."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from errno import EIO, ENOSPC
from pathlib import Path
from typing import Any

import pytest

from qedasync.engine.sources import RawSource
from qedasync.errors import ImageClosed, ImageFailed, ImageLocked, StateError, StorageError
from qedasync.events import Event
from qedasync.image import Image, open_image
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from tests.faults.disks import SIZE, content_of, disk_on, filled, header_of, look, turns
from tests.faults.guest import CLUSTER, raw_backing

NEW = b"n" * CLUSTER

Request = Callable[[Image], Coroutine[Any, Any, object]]

REQUESTS: dict[str, Request] = {
    "read": lambda disk: disk.pread(512, 0),
    "readinto": lambda disk: disk.readinto(bytearray(512), 0),
    "read-far": lambda disk: disk.pread(512, 40 * CLUSTER),
    "write": lambda disk: disk.pwrite(NEW, 0),
    "allocate": lambda disk: disk.pwrite(NEW, 40 * CLUSTER),
    "zeroes": lambda disk: disk.write_zeroes(512, 0),
    "discard": lambda disk: disk.discard(CLUSTER, 0),
    "flush": lambda disk: disk.flush(),
    "grow": lambda disk: disk.truncate(2 * SIZE),
    "status": lambda disk: disk.block_status(0, SIZE),
    "check": lambda disk: disk.check(),
    "repair": lambda disk: disk.check(repair=True),
}

each_request = pytest.mark.parametrize("request_of", REQUESTS.values(), ids=REQUESTS)


async def dirty(storage: FaultStorage) -> Image:
    """An open disk with NEED_CHECK set."""
    disk = await open_image("d", "r+", storage=storage, backing=False, need_check_timeout=0)
    await disk.pwrite(NEW, 5 * CLUSTER)
    return disk


@each_request
async def test_closed_image_refuses_every_request(request_of: Request) -> None:
    async with disk_on(MemoryStorage(await filled(0))) as disk:
        await disk.pread(512, 0)
    with pytest.raises(ImageClosed):
        await request_of(disk)


@each_request
async def test_closing_image_refuses_every_request_while_it_still_flushes(
    request_of: Request,
) -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    disk = await dirty(storage)
    await disk.pread(512, 0)
    storage.add(Fault("pause", op="flush"))
    closing = asyncio.create_task(disk.close())
    await storage.wait_paused()
    with pytest.raises(ImageClosed):
        await request_of(disk)
    storage.resume()
    await closing


async def test_close_twice_and_at_once_releases_once() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    disk = await dirty(storage)
    await asyncio.gather(disk.close(), disk.close(), disk.close())
    await disk.close()
    assert storage.count("close") == 1
    assert disk.closed


async def test_close_waits_for_requests_in_flight() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    disk = await dirty(storage)
    storage.add(Fault("pause", event=Event.WRITE_AIO), Fault("pause", event=Event.READ_AIO))
    requests = [
        asyncio.create_task(request)
        for request in (disk.pwrite(NEW, 0), disk.pwrite(NEW, 9 * CLUSTER), disk.pread(512, 0))
    ]
    await storage.wait_paused(2)
    closing = asyncio.create_task(disk.close())
    await turns(10)
    assert not closing.done()
    assert storage.count("close") == 0
    storage.resume()
    await asyncio.gather(closing, *requests)
    assert await look(content_of(storage), CLUSTER, 9 * CLUSTER) == NEW


async def test_close_flushes_clears_need_check_and_flushes_again() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    disk = await dirty(storage)
    before = len(storage.calls)
    await disk.close()
    steps = [(call.op, call.event) for call in storage.calls[before:]]
    flush = ("flush", Event.FLUSH_TO_DISK)
    assert steps[:3] == [flush, ("write", Event.HEADER_UPDATE), flush]
    assert steps[-1] == ("close", None)
    assert not header_of(storage).need_check


async def test_close_flush_fails_need_check_stays_and_everything_is_released() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    disk = await dirty(storage)
    storage.add(Fault("error", op="flush", errno=ENOSPC))
    with pytest.raises(StorageError) as caught:
        await disk.close()
    assert caught.value.errno == ENOSPC
    assert header_of(storage).need_check
    assert storage.count("close") == 1
    assert await look(content_of(storage), CLUSTER, 5 * CLUSTER) == NEW


async def test_close_header_write_fails_says_so_and_need_check_stays() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    disk = await dirty(storage)
    storage.add(Fault("error", event=Event.HEADER_UPDATE))
    with pytest.raises(StorageError):
        await disk.close()
    assert header_of(storage).need_check
    assert storage.count("close") == 1


async def test_close_after_a_failed_flush_keeps_need_check() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    disk = await dirty(storage)
    storage.add(Fault("error", op="flush"))
    with pytest.raises(StorageError):
        await disk.flush()
    with pytest.raises(ImageFailed):
        await disk.close()
    assert header_of(storage).need_check


async def test_close_storage_close_fails_backing_is_closed_all_the_same() -> None:
    base = FaultStorage(MemoryStorage(raw_backing(SIZE)))
    storage = FaultStorage(MemoryStorage(await filled(0, backing="base.raw")))
    disk = await dirty(storage)
    disk._engine.attach(RawSource(base, "base.raw"))
    storage.add(Fault("error", op="close"))
    with pytest.raises(StorageError):
        await disk.close()
    assert base.count("close") == 1


async def test_close_cancelled_runs_to_the_end() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    disk = await dirty(storage)
    storage.add(Fault("pause", op="flush"))
    closing = asyncio.create_task(disk.close())
    await storage.wait_paused()
    for _ in range(3):
        closing.cancel()
        await turns(2)
        assert not closing.done()
    storage.resume()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not header_of(storage).need_check
    assert storage.count("close") == 1


async def test_close_cancelled_and_failing_leaves_no_unheard_exception() -> None:
    """The watch on the loop fails this test if the error of the flush is reported as unheard."""
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    disk = await dirty(storage)
    storage.add(Fault("pause", op="flush"), Fault("error", op="flush"))
    closing = asyncio.create_task(disk.close())
    await storage.wait_paused()
    closing.cancel()
    await turns(2)
    storage.resume()
    with pytest.raises(asyncio.CancelledError):
        await closing
    del closing, disk
    gc.collect()
    await turns(2)


async def test_body_and_close_fail_the_body_s_error_leaves_with_a_note() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))

    async def use() -> None:
        async with disk_on(storage) as disk:
            await disk.pwrite(NEW, 5 * CLUSTER)
            storage.add(Fault("error", op="flush", errno=EIO))
            raise LookupError

    with pytest.raises(LookupError) as caught:
        await use()
    assert any("Closing" in note for note in caught.value.__notes__)


async def test_close_while_a_greedy_reader_pauses_ends_its_reads() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    disk = await dirty(storage)

    async def read_for_ever() -> None:
        while True:
            await disk.pread(512, 0)
            assert not disk.closed, "a read of a closed image"

    reader = asyncio.create_task(read_for_ever())
    await turns(3)
    storage.add(Fault("pause", op="flush"))
    closing = asyncio.create_task(disk.close())
    await storage.wait_paused()
    await turns(5)
    assert reader.done()
    with pytest.raises(ImageClosed):
        reader.result()
    storage.resume()
    await closing


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", range(10))
async def test_loop_cancels_the_closing_task_too_storage_is_released(
    before: int, after: int
) -> None:
    """As asyncio.run does at its end, with every task there is; ``before`` 1: none has begun."""
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    disk = await dirty(storage)
    storage.add(Fault("pause", event=Event.READ_AIO))
    read = asyncio.create_task(disk.pread(512, 0))
    await storage.wait_paused()
    closing = asyncio.create_task(disk.close())
    await turns(before)
    if after:
        storage.resume()
        await turns(after)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.wait([read, closing])
    await asyncio.gather(*tasks, return_exceptions=True)
    assert storage.count("close") == 1
    assert await look(content_of(storage), CLUSTER, 5 * CLUSTER) == NEW


# ---------------------------------------------------------- loops and images


async def test_two_images_on_one_loop_one_fails_the_other_does_not_notice() -> None:
    bad = FaultStorage(MemoryStorage(await filled(0), inline=False))
    good = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(good) as second, disk_on(bad, fails=True) as first:
        failing = Fault("error", event=Event.L2_UPDATE, once=False)
        bad.add(Fault("pause", event=Event.L2_UPDATE), failing)
        slow = asyncio.create_task(first.pwrite(NEW, 5 * CLUSTER))
        await bad.wait_paused()
        await second.pwrite(NEW, 5 * CLUSTER)
        await second.flush()
        bad.resume()
        with pytest.raises(StorageError):
            await slow
        await second.pwrite(NEW, 6 * CLUSTER)
        assert await second.pread(2 * CLUSTER, 5 * CLUSTER) == NEW * 2
        assert await first.pread(512, 0) == b"\1" * 512


@pytest.mark.parametrize("name", ["read-far", "write", "allocate", "zeroes", "flush", "grow"])
def test_image_used_from_a_second_loop_raises_state_error(name: str) -> None:
    async def make() -> Image:
        storage = MemoryStorage(await filled(0), inline=False)
        return await open_image("d", "r+", storage=storage, backing=False, need_check_timeout=0)

    with asyncio.Runner() as first, asyncio.Runner() as second:
        disk = first.run(make())

        async def use() -> None:
            with pytest.raises(StateError, match="another event loop"):
                await REQUESTS[name](disk)

        second.run(use())
        first.run(disk.close())


def test_image_closed_from_a_second_loop_raises_state_error_and_stays_open() -> None:
    async def make() -> Image:
        storage = MemoryStorage(await filled(0), inline=False)
        disk = await open_image("d", "r+", storage=storage, backing=False)
        await disk.pwrite(NEW, 5 * CLUSTER)
        return disk

    with asyncio.Runner() as first, asyncio.Runner() as second:
        disk = first.run(make())

        async def use() -> None:
            with pytest.raises(StateError, match="another event loop"):
                await disk.close()

        second.run(use())
        assert not disk.closed
        first.run(disk.close())


async def test_file_opened_twice_for_writing_second_raises_image_locked(tmp_path: Path) -> None:
    path = tmp_path / "disk.qed"
    path.write_bytes(bytes(await filled(0)))
    async with open_image(path, "r+") as disk:
        with pytest.raises(ImageLocked):
            await open_image(path, "r+")
        await disk.pwrite(NEW, 0)
    async with open_image(path, "r+") as disk:
        assert await disk.pread(CLUSTER, 0) == NEW
