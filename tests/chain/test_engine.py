"""What the engine does for jobs: bring over, watch, order, be entered."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Coroutine
from typing import Any

import pytest

from qedasync.chain.commit import empty_image
from qedasync.errors import ImageClosed, ImageFailed, ReadOnly, StorageError
from qedasync.events import Event
from qedasync.image import Image, open_image
from qedasync.storage.base import Storage, WriteBuffers
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage, SparseBytes
from qedasync.storage.recorder import FlushRecord, RecorderStorage, WriteRecord
from tests.chain.stack import CLUSTER, header_of, image_file
from tests.faults.disks import turns

SIZE = 40 * CLUSTER


async def opened(storage: Storage, base: bytes = b"") -> Image:
    below = await open_image_below(base) if base else False
    return await open_image("d", "r+", storage=storage, backing=below, need_check_timeout=0)


async def open_image_below(data: bytes) -> Image:
    storage = MemoryStorage(image_file(SIZE, CLUSTER))
    disk = await open_image("below", "r+", storage=storage, need_check_timeout=0)
    await disk.pwrite(data, 0)
    return disk


async def test_populate_leaves_data_and_zeroes_alone() -> None:
    async with await opened(MemoryStorage(image_file(SIZE, CLUSTER))) as disk:
        await disk.pwrite(b"g" * 512, CLUSTER)
        await disk.write_zeroes(CLUSTER, 3 * CLUSTER)
        await disk._engine.populate(0, 5 * CLUSTER, [b"p" * 5 * CLUSTER])
        data = bytes(await disk.pread(5 * CLUSTER, 0))
        assert data[:CLUSTER] == data[2 * CLUSTER : 3 * CLUSTER] == b"p" * CLUSTER
        assert data[4 * CLUSTER :] == b"p" * CLUSTER
        assert data[CLUSTER : 2 * CLUSTER] == (b"g" * 512).ljust(CLUSTER, b"\0")
        assert data[3 * CLUSTER : 4 * CLUSTER] == bytes(CLUSTER)


async def test_populate_with_zeroes_marks_what_is_free() -> None:
    content = image_file(SIZE, CLUSTER)
    async with await opened(MemoryStorage(content), b"b" * SIZE) as disk:
        await disk.pwrite(b"g" * CLUSTER, CLUSTER)
        size = content.size
        await disk._engine.populate(0, 3 * CLUSTER, None)
        assert await disk.pread(3 * CLUSTER, 0) == bytes(CLUSTER) + b"g" * CLUSTER + bytes(CLUSTER)
        assert content.size == size


@pytest.mark.parametrize("guest_first", [True, False])
async def test_populate_in_one_group_with_a_write_lets_the_write_win(guest_first: bool) -> None:
    storage = FaultStorage(MemoryStorage(image_file(SIZE, CLUSTER), inline=False))
    async with await opened(storage, b"b" * SIZE) as disk:
        old = b"b" * 3 * CLUSTER
        first = asyncio.create_task(disk.pwrite(b"1", 9 * CLUSTER))  # the next ones form a group
        await turns(2)
        groups = disk.stats.groups
        work: list[Coroutine[Any, Any, object]] = [
            disk.pwrite(b"g" * 512, CLUSTER + 512),
            disk._engine.populate(0, 3 * CLUSTER, [old]),
        ]
        tasks = []
        for each in work if guest_first else work[::-1]:
            tasks.append(asyncio.create_task(each))
            await turns(1)
        await asyncio.gather(first, *tasks)
        assert disk.stats.groups == groups + 2, "they were no group"
        want = bytearray(old)
        want[CLUSTER + 512 : CLUSTER + 1024] = b"g" * 512
        assert await disk.pread(3 * CLUSTER, 0) == want


async def test_populate_to_the_image_end_leaves_zeroes_behind_it() -> None:
    size = 2 * CLUSTER + 512
    content = image_file(size, CLUSTER)
    async with await opened(MemoryStorage(content), b"b" * SIZE) as disk:
        await disk._engine.populate(CLUSTER, CLUSTER + 512, [b"b" * (CLUSTER + 512)])
        await disk.truncate(3 * CLUSTER)
        assert await disk.pread(CLUSTER, 2 * CLUSTER) == (b"b" * 512).ljust(CLUSTER, b"\0")


async def test_populate_of_a_read_only_image_is_refused() -> None:
    async with open_image("d", storage=MemoryStorage(image_file(SIZE, CLUSTER))) as disk:
        with pytest.raises(ReadOnly):
            await disk._engine.populate(0, CLUSTER, None)


class InlineStorage(MemoryStorage):
    """Writes at once where it may."""

    def try_write(self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO) -> bool:
        for buffer in buffers:
            self.content.write(buffer, offset)
            offset += len(buffer)
        return True


async def test_watched_is_told_of_what_would_be_written_inline() -> None:
    seen: list[tuple[int, int]] = []
    async with await opened(InlineStorage(image_file(SIZE, CLUSTER))) as disk:
        await disk.pwrite(b"x" * CLUSTER, 0)
        await disk.pread(1, 0)  # now the slice is at hand
        assert disk._engine.try_write(b"y", 4, 1)
        with disk._engine.watched(lambda pos, length: seen.append((pos, length))):
            await disk.pwrite(b"y", 5)
        assert disk._engine.try_write(b"y", 6, 1)
    assert seen == [(5, 1)]


async def test_watched_is_told_of_all_changes_and_of_failed_ones() -> None:
    storage = FaultStorage(MemoryStorage(image_file(SIZE, CLUSTER)))
    seen: list[tuple[int, int]] = []
    async with await opened(storage) as disk:
        await disk.pwrite(b"x" * CLUSTER, 0)
        with disk._engine.watched(lambda pos, length: seen.append((pos, length))):
            await disk.pwrite(b"y", 5)
            await disk.write_zeroes(CLUSTER, 2 * CLUSTER)
            await disk.discard(CLUSTER, 0)
            storage.add(Fault("error", op="write"))
            with pytest.raises(StorageError):
                await disk.pwrite(b"z", 7)
        await disk.pwrite(b"y", 6)
    assert seen == [(5, 1), (2 * CLUSTER, CLUSTER), (0, CLUSTER), (7, 1)]


async def test_watched_image_that_failed_meanwhile_stays_failed() -> None:
    disk = await opened(MemoryStorage(image_file(SIZE, CLUSTER)))
    await disk.pwrite(b"x" * CLUSTER, 0)
    with disk._engine.watched(lambda pos, length: None):
        disk._engine.fail(StorageError(5))
    with pytest.raises(ImageFailed):
        await disk.pwrite(b"y", 0)
    with pytest.raises(ImageFailed):
        await disk.close()


async def test_ordered_image_flushes_data_before_its_entry_and_needs_no_check() -> None:
    recorder = RecorderStorage(MemoryStorage(image_file(SIZE, CLUSTER)))
    async with await opened(recorder) as disk:
        disk._engine.ordered = True
        await disk.pwrite(b"x" * CLUSTER, 0)
        recorder.log.clear()
        await disk.pwrite(b"y" * CLUSTER, CLUSTER)
        steps = [
            each.event if isinstance(each, WriteRecord) else "flush"
            for each in recorder.log
            if isinstance(each, WriteRecord | FlushRecord)
        ]
        assert steps == [Event.WRITE_AIO, "flush", Event.L2_UPDATE]
        assert not disk.features


async def test_entered_image_is_not_closed_meanwhile() -> None:
    disk = await opened(MemoryStorage(image_file(SIZE, CLUSTER)))
    async with disk._engine.entered():
        closing = asyncio.create_task(disk.close())
        await turns(5)
        assert not closing.done()
    await closing
    with pytest.raises(ImageClosed):
        async with disk._engine.entered():
            pass


async def test_empty_image_waits_for_a_load_whose_reader_is_gone() -> None:
    """It would take for a table what lies in the old one's place by then."""
    content = image_file(SIZE, CLUSTER)
    async with await opened(MemoryStorage(content)) as disk:
        await disk.pwrite(b"x" * 3 * CLUSTER, 0)
    storage = FaultStorage(MemoryStorage(content, inline=False))
    disk = await opened(storage)
    storage.add(Fault("delay", event=Event.L2_LOAD, turns=200))
    reading = asyncio.create_task(disk.pread(1, 0))
    await turns(5)
    reading.cancel()
    await asyncio.wait([reading])
    async with disk._engine.exclusive():
        await empty_image(disk._engine)
    data = (4 * CLUSTER).to_bytes(8, "little") * (6 * CLUSTER // 8)
    await disk.pwrite(data, 0)
    await turns(250)
    assert await disk.pread(8 * CLUSTER, 0) == data + bytes(2 * CLUSTER)
    assert not (await disk.check()).corruptions
    await disk.close()


@pytest.mark.parametrize("action", ["error", "error-after", "torn"])
async def test_empty_image_that_cannot_clear_l1_puts_it_back(action: str) -> None:
    content = image_file(SIZE, CLUSTER)
    storage = FaultStorage(MemoryStorage(content))
    disk = await opened(storage)
    await disk.pwrite(b"x" * 3 * CLUSTER, 0)
    before = bytes(content)
    storage.add(Fault(action, event=Event.L1_UPDATE))  # type: ignore[arg-type]
    async with disk._engine.exclusive():
        with pytest.raises(StorageError):
            await empty_image(disk._engine)
    assert bytes(content) == before
    await disk.pwrite(b"y", CLUSTER)
    await disk.close()
    await read_again(content)


async def read_again(content: SparseBytes) -> None:
    async with await opened(MemoryStorage(content)) as disk:
        assert await disk.pread(CLUSTER, CLUSTER) == b"y".ljust(CLUSTER, b"x")
        assert not (await disk.check()).corruptions


async def test_empty_image_whose_l1_cannot_be_put_back_fails() -> None:
    storage = FaultStorage(MemoryStorage(image_file(SIZE, CLUSTER)))
    disk = await opened(storage)
    await disk.pwrite(b"x" * CLUSTER, 0)
    storage.add(Fault("error-after", event=Event.L1_UPDATE, once=False))
    async with disk._engine.exclusive():
        with pytest.raises(StorageError):
            await empty_image(disk._engine)
    assert await disk.pread(CLUSTER, 0) == b"x" * CLUSTER
    with pytest.raises(ImageFailed):
        await disk.pwrite(b"y", 0)
    with pytest.raises(ImageFailed):
        await disk.close()


async def test_empty_image_clears_tables_past_the_image_end_too() -> None:
    """They are legal, and would point past the end of the file."""
    content = image_file(SIZE, CLUSTER)
    entry = array("Q", [3 * CLUSTER]).tobytes()
    content.write(entry, CLUSTER + 8 * 700)
    content.resize(5 * CLUSTER)
    async with await opened(MemoryStorage(content)) as disk:
        async with disk._engine.exclusive():
            await empty_image(disk._engine)
        assert not (await disk.check()).corruptions
    assert bytes(content)[CLUSTER:] == bytes(2 * CLUSTER)
    assert not header_of(content)[0].features
