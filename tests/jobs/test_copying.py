"""copy: what fails on the way, salvage, and disks that have no plain file behind them."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

import qedasync
from qedasync import Event, ExtentKind, MemoryStorage, StorageError
from qedasync.jobs.copying import copy
from qedasync.storage.faults import Fault, FaultStorage
from tests.helpers.model import blank
from tests.jobs.disks import KIB, MIB, Lender, patchwork, write_sparse

CONTENT = patchwork(3 * MIB, 21)


def memory_image(size: int) -> MemoryStorage:
    return MemoryStorage(blank(size, 65536, 4))


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("tasks", [1, 3, 16])
async def test_copy_between_disks_without_files_keeps_every_byte(
    tasks: int, in_order: bool
) -> None:
    async with (
        qedasync.open_raw("a", storage=MemoryStorage(CONTENT, inline=False)) as source,
        qedasync.open("b", "r+", storage=memory_image(3 * MIB)) as target,
    ):
        result = await copy(source, target, tasks=tasks, in_order=in_order, target_is_zero=True)
        assert await target.pread(3 * MIB, 0) == CONTENT
        assert result.copied + result.skipped == 3 * MIB
        if in_order:
            offsets = [
                run.offset
                for run in await target.block_status(0, 3 * MIB)
                if run.kind is ExtentKind.DATA
            ]
            assert offsets == sorted(offsets)  # type: ignore[type-var]


async def test_copy_behind_a_start_leaves_the_rest_alone() -> None:
    storage = MemoryStorage(b"x" * (4 * MIB))
    async with (
        qedasync.open_raw("a", storage=MemoryStorage(CONTENT)) as source,
        qedasync.open_raw("b", "r+", storage=storage) as target,
    ):
        result = await copy(source, target, start=4096)
        assert await target.pread(4 * MIB, 0) == b"x" * 4096 + CONTENT + b"x" * (MIB - 4096)
        assert result.copied + result.zeroed == 3 * MIB


# --------------------------------------------------------------------- failures


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("tasks", [1, 8])
async def test_copy_read_that_fails_ends_it(call: int, tasks: int) -> None:
    storage = FaultStorage(MemoryStorage(CONTENT), Fault("error", op="read", call=call))
    async with (
        qedasync.open_raw("a", storage=storage) as source,
        qedasync.open("b", "r+", storage=memory_image(3 * MIB)) as target,
    ):
        with pytest.raises(StorageError) as caught:
            await copy(source, target, tasks=tasks)
        assert caught.value.errno == errno.EIO
        assert (await target.check()).corruptions == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("event", [Event.WRITE_AIO, Event.L2_UPDATE, Event.L1_UPDATE])
async def test_copy_write_that_fails_ends_it(event: Event, number: int) -> None:
    fault = Fault("error", op="write", event=event, errno=number, once=False)
    storage = FaultStorage(memory_image(3 * MIB), fault)
    async with qedasync.open_raw("a", storage=MemoryStorage(os.urandom(3 * MIB))) as source:
        target = await qedasync.open("b", "r+", storage=storage)
        with pytest.raises(qedasync.QEDError) as caught:
            await copy(source, target)
        assert caught.value.errno == number  # type: ignore[attr-defined]
        storage.clear()
        assert (await target.check()).corruptions == 0
        try:
            await target.close()
        except qedasync.ImageFailed:
            assert event is not Event.WRITE_AIO


@pytest.mark.parametrize("good", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("format", ["qed", "raw"])
async def test_copy_goes_on_where_threads_failed_to_read(
    tmp_path: Path, good: int, format: str
) -> None:
    write_sparse(tmp_path / "a.raw", CONTENT)
    (tmp_path / "b.raw").touch()
    await qedasync.create(tmp_path / "b.qed", 3 * MIB)
    async with (
        qedasync.open_raw(tmp_path / "a.raw") as source,
        qedasync.open_raw(tmp_path / "b.raw", "r+") as raw,
        qedasync.open(tmp_path / "b.qed", "r+") as image,
    ):
        await raw.truncate(3 * MIB)
        target = image if format == "qed" else raw
        result = await copy(Lender(source, good), target, target_is_zero=True, alone=True)
        assert await target.pread(3 * MIB, 0) == CONTENT
        assert result.copied + result.skipped == 3 * MIB
        if format == "qed":
            assert (await image.check()).ok


@pytest.mark.parametrize("good", [0, 1, 2, 5, 9])
async def test_copy_goes_on_where_threads_failed_to_write(tmp_path: Path, good: int) -> None:
    write_sparse(tmp_path / "a.raw", CONTENT)
    (tmp_path / "b.raw").touch()
    async with (
        qedasync.open_raw(tmp_path / "a.raw") as source,
        qedasync.open_raw(tmp_path / "b.raw", "r+") as target,
    ):
        await target.truncate(3 * MIB)
        await copy(source, Lender(target, good), target_is_zero=True, alone=True)
        assert await target.pread(3 * MIB, 0) == CONTENT


async def test_copy_writes_on_threads_are_flushed_with_the_rest(tmp_path: Path) -> None:
    write_sparse(tmp_path / "a.raw", CONTENT)
    (tmp_path / "b.raw").touch()
    storage = await qedasync.open_storage(tmp_path / "b.raw", writable=True)
    async with (
        qedasync.open_raw(tmp_path / "a.raw") as source,
        qedasync.open_raw("b", "r+", storage=storage) as target,
    ):
        await target.truncate(3 * MIB)
        await target.flush()
        assert not storage._flusher.unsynced  # type: ignore[attr-defined]
        await copy(source, target, target_is_zero=True)
        assert storage._flusher.unsynced  # type: ignore[attr-defined]
        await target.flush()
        assert not storage._flusher.unsynced  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- salvage


@pytest.mark.parametrize("target_is_zero", [True, False])
async def test_copy_salvage_zeroes_what_cannot_be_read(target_is_zero: bool) -> None:
    content = os.urandom(MIB)
    storage = _Scratched(content, bad=range(300 * KIB, 300 * KIB + 1024))
    target_content = bytes(MIB) if target_is_zero else b"x" * MIB
    async with (
        qedasync.open_raw("a", storage=storage) as source,
        qedasync.open_raw("b", "r+", storage=MemoryStorage(target_content)) as target,
    ):
        result = await copy(source, target, salvage=True, target_is_zero=target_is_zero)
        expected = content[: 300 * KIB] + bytes(1024) + content[300 * KIB + 1024 :]
        assert await target.pread(MIB, 0) == expected
        assert result.unreadable == 1024


async def test_copy_salvage_of_a_damaged_table_gets_what_is_left() -> None:
    storage = memory_image(4 * MIB)
    async with qedasync.open("a", "r+", storage=storage) as image:
        await image.pwrite(b"a" * (2 * MIB), 0)
    damaged = bytearray(await _bytes_of(storage))
    table = int.from_bytes(damaged[65536:65544], "little")
    damaged[table + 8 : table + 16] = (12345).to_bytes(8, "little")
    async with (
        qedasync.open("a", storage=MemoryStorage(bytes(damaged))) as source,
        qedasync.open_raw("b", "r+", storage=MemoryStorage(bytes(4 * MIB))) as target,
    ):
        with pytest.raises(qedasync.CorruptTable):
            await copy(source, target)
        result = await copy(source, target, salvage=True)
        assert result.unreadable == 65536
        expected = b"a" * 65536 + bytes(65536) + b"a" * (2 * MIB - 131072) + bytes(2 * MIB)
        assert await target.pread(4 * MIB, 0) == expected


# ----------------------------------------------------------------- cancellation


@pytest.mark.parametrize("turns", range(0, 60, 7))
async def test_copy_cancelled_leaves_a_sound_target_and_nothing_running(turns: int) -> None:
    source_storage = MemoryStorage(CONTENT, inline=False)
    target_storage = MemoryStorage(blank(3 * MIB, 65536, 4), inline=False)
    async with (
        qedasync.open_raw("a", storage=source_storage) as source,
        qedasync.open("b", "r+", storage=target_storage) as target,
    ):
        task = asyncio.create_task(copy(source, target))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        before = target.stats
        await asyncio.sleep(0)
        assert target.stats.writes == before.writes
        assert (await target.check()).corruptions == 0
        data = await target.pread(3 * MIB, 0)
        for pos in range(0, 3 * MIB, 4096):
            assert data[pos : pos + 4096] in (bytes(4096), CONTENT[pos : pos + 4096])


async def _bytes_of(storage: MemoryStorage) -> bytes:
    data = bytearray(storage.size)
    again = MemoryStorage(storage.content)
    await again.read_into([data], 0)
    return bytes(data)


class _Scratched(MemoryStorage):
    """Bytes of which some cannot be read."""

    def __init__(self, content: bytes, bad: range) -> None:
        super().__init__(content)
        self._bad = bad

    def try_read_into(self, *arguments: object, **more: object) -> bool:
        return False

    async def read_into(  # type: ignore[no-untyped-def]
        self, buffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        length = sum(map(len, buffers))
        if offset < self._bad.stop and offset + length > self._bad.start:
            raise StorageError(errno.EIO, offset=offset, length=length)
        await super().read_into(buffers, offset, event)
