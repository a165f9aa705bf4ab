"""A raw file as users call it: every method, its errors, its tail, and its life."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync.disk import Disk
from qedasync.engine.budget import INLINE_REQUESTS
from qedasync.engine.extents import Extent, ExtentKind
from qedasync.errors import (
    ImageClosed,
    ImageFailed,
    ImageLocked,
    ImageNotFound,
    ReadOnly,
    RequestError,
    StateError,
    StorageError,
)
from qedasync.raw import RawImage, open_raw
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage

Call = Callable[[RawImage], Coroutine[Any, Any, object]]

SIZE = 64 * 1024
TEXT = (b"The quick brown fox. " * 4000)[:SIZE]


@pytest.fixture
async def disk() -> AsyncIterator[RawImage]:
    async with open_raw("disk.raw", "r+", storage=MemoryStorage(TEXT)) as raw:
        yield raw


# ------------------------------------------------------------------------ facts


async def test_facts_of_a_raw_file(disk: RawImage) -> None:
    assert isinstance(disk, Disk)
    assert (disk.path, disk.size, disk.readonly, disk.closed) == ("disk.raw", SIZE, False, False)
    assert repr(disk) == "<qedasync.RawImage 'disk.raw' 65536 bytes>"


# --------------------------------------------------------------- reads and writes


async def test_pread_readinto_and_preadv_give_the_bytes(disk: RawImage) -> None:
    assert await disk.pread(100, 7) == TEXT[7:107]
    buffer = bytearray(50)
    assert await disk.readinto(buffer, 1) == 50
    assert buffer == TEXT[1:51]
    parts: list[bytearray | memoryview] = [bytearray(3), memoryview(bytearray(9))[2:6]]
    assert await disk.preadv(parts, 11) == 7
    assert bytes(parts[0]) + bytes(parts[1]) == TEXT[11:18]
    assert await disk.pread(0, SIZE) == b""


@pytest.mark.parametrize("data", [b"abcd", bytearray(b"abcd"), memoryview(b"aXbXcXdX")[::2]])
async def test_pwrite_of_any_buffer_arrives(disk: RawImage, data: Any) -> None:
    assert await disk.pwrite(data, 5) == 4
    assert await disk.pread(8, 3) == TEXT[3:5] + b"abcd" + TEXT[9:11]


async def test_pwritev_lays_buffers_end_to_end(disk: RawImage) -> None:
    assert await disk.pwritev([b"ab", b"", bytearray(b"cde")], SIZE - 5) == 5
    assert await disk.pread(6, SIZE - 6) == TEXT[-6:-5] + b"abcde"
    assert await disk.pwrite(b"", SIZE) == 0


@pytest.mark.parametrize("method", ["write_zeroes", "discard"])
async def test_zeroes_are_read_back(disk: RawImage, method: str) -> None:
    await getattr(disk, method)(1000, 10)
    assert await disk.pread(1020, 0) == TEXT[:10] + bytes(1000) + TEXT[1010:1020]
    await getattr(disk, method)(0, SIZE)
    assert disk.size == SIZE


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, SIZE + 1), (SIZE, 1), (1 << 70, 1)])
async def test_request_outside_the_disk_is_refused(
    disk: RawImage, offset: int, length: int
) -> None:
    calls: list[Coroutine[Any, Any, object]] = [
        disk.pread(length, offset),
        disk.readinto(bytearray(length), offset),
        disk.pwrite(bytes(length), offset),
        disk.write_zeroes(length, offset),
        disk.discard(length, offset),
        disk.block_status(offset, length),
    ]
    for call in calls:
        with pytest.raises(RequestError) as caught:
            await call
        assert (caught.value.offset, caught.value.length) == (offset, length)
    assert await disk.pread(SIZE, 0) == TEXT


async def test_read_into_what_cannot_be_written_is_refused(disk: RawImage) -> None:
    with pytest.raises(RequestError):
        await disk.readinto(memoryview(b"abc"), 0)


# ----------------------------------------------------------------------- the tail


@pytest.mark.parametrize("length", [1, 511, 513, 1000, 5000])
async def test_file_that_ends_inside_a_sector_reads_as_zeroes_to_its_end(
    tmp_path: Path, length: int
) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(TEXT[:length])
    async with open_raw(path) as disk:
        whole = -(-length // 512) * 512
        assert disk.size == whole
        assert await disk.pread(whole, 0) == TEXT[:length].ljust(whole, b"\0")
        runs = await disk.block_status(0, whole)
        assert (runs[0].start, runs[-1].end) == (0, whole)
        assert runs == [run async for run in disk.extents()]
        last = await disk.block_status(whole - 1, 1)
        assert [(run.start, run.length, run.zero) for run in last] == [(whole - 1, 1, True)]
    assert path.stat().st_size == length


async def test_write_into_the_tail_makes_the_file_longer(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(TEXT[:1000])
    async with open_raw(path, "r+") as disk:
        await disk.pwrite(b"end", 1021)
        assert await disk.pread(24, 1000) == bytes(21) + b"end"
        assert disk.size == 1024
    assert path.read_bytes() == TEXT[:1000] + bytes(21) + b"end"


async def test_truncate_sets_the_size(disk: RawImage) -> None:
    await disk.truncate(SIZE + 512)
    assert disk.size == SIZE + 512
    assert await disk.pread(513, SIZE - 1) == TEXT[-1:] + bytes(512)
    await disk.truncate(512)
    assert disk.size == 512
    with pytest.raises(RequestError):
        await disk.pread(513, 0)
    await disk.truncate(1024)
    assert await disk.pread(1024, 0) == TEXT[:512] + bytes(512)


@pytest.mark.parametrize("size", [-512, 100, 513])
async def test_truncate_to_no_whole_sectors_is_refused(disk: RawImage, size: int) -> None:
    with pytest.raises(RequestError):
        await disk.truncate(size)
    assert disk.size == SIZE


# -------------------------------------------------------------------------- runs


async def test_block_status_tells_data_from_holes(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    with path.open("wb") as file:
        file.truncate(4 << 20)
        for pos in (1 << 20, 3 << 20):
            file.seek(pos)
            file.write(b"x" * 65536)
    async with open_raw(path) as disk:
        runs = await disk.block_status(0, 4 << 20)
        assert runs == [run async for run in disk.extents()]
        data = [run for run in runs if not run.zero]
        assert data == [
            Extent(pos, 65536, ExtentKind.DATA, False, offset=pos, path=str(path))
            for pos in (1 << 20, 3 << 20)
        ]
        inside = await disk.block_status((1 << 20) + 5, 10)
        assert [(run.start, run.length, run.zero) for run in inside] == [((1 << 20) + 5, 10, False)]


@pytest.mark.parametrize("storage", ["posix", "aiofiles"])
async def test_block_status_of_very_many_runs_has_no_gaps(tmp_path: Path, storage: str) -> None:
    path = tmp_path / "a.raw"
    with path.open("wb") as file:
        for number in range(2100):
            file.seek(number * 8192)
            file.write(b"x" * 4096)
        file.truncate(2101 * 8192)
    async with open_raw(path, storage=storage) as disk:
        pos = held = 0
        for run in await disk.block_status(0, disk.size):
            assert run.start == pos
            pos = run.end
            held += 0 if run.zero else run.length
        assert pos == disk.size
        assert held >= 2100 * 4096
        if storage == "posix":
            assert held == 2100 * 4096


# ------------------------------------------------------------------ flush, cache


async def test_writethrough_flushes_each_write() -> None:
    storage = FaultStorage(MemoryStorage(TEXT))
    async with open_raw("disk", "r+", storage=storage, cache="writethrough") as disk:
        await disk.pwrite(b"a", 0)
        assert storage.count("flush") == 1
        await disk.write_zeroes(5, 5)
        assert storage.count("flush") == 2
        async with disk.lent(writing=True) as file:
            assert file is None


async def test_unsafe_never_flushes() -> None:
    storage = FaultStorage(MemoryStorage(TEXT))
    async with open_raw("disk", "r+", storage=storage, cache="unsafe") as disk:
        await disk.pwrite(b"a", 0)
        await disk.flush()
    assert storage.count("flush") == 0


async def test_close_flushes_what_was_written() -> None:
    storage = FaultStorage(MemoryStorage(TEXT))
    async with open_raw("disk", "r+", storage=storage) as disk:
        await disk.pwrite(b"a", 0)
    assert storage.count("flush") == 1


async def test_failed_flush_refuses_writes_from_then_on() -> None:
    storage = FaultStorage(MemoryStorage(TEXT), Fault("error", op="flush"))
    disk = await open_raw("disk", "r+", storage=storage)
    await disk.pwrite(b"a", 0)
    with pytest.raises(StorageError):
        await disk.flush()
    for call in (disk.pwrite(b"b", 0), disk.write_zeroes(1, 0), disk.flush(), disk.truncate(512)):
        with pytest.raises(ImageFailed) as caught:
            await call
        assert caught.value.errno == errno.EIO
    assert await disk.pread(1, 0) == b"a"
    with pytest.raises(ImageFailed):
        await disk.close()
    assert storage.count("close") == 1


@pytest.mark.parametrize("op", ["read", "write"])
async def test_failed_transfer_raises_and_the_disk_stays_usable(op: Any) -> None:
    fault = Fault("error", op=op, errno=errno.ENOSPC)
    async with open_raw("d", "r+", storage=FaultStorage(MemoryStorage(TEXT), fault)) as disk:
        with pytest.raises(StorageError) as caught:
            await (disk.pread(9, 3) if op == "read" else disk.pwrite(b"x" * 9, 3))
        assert (caught.value.errno, caught.value.offset) == (errno.ENOSPC, 3)
        assert await disk.pread(9, 3) == TEXT[3:12]
        await disk.pwrite(b"yes", 3)
        assert await disk.pread(3, 3) == b"yes"


# --------------------------------------------------------------- closed, read-only

CALLS: dict[str, Call] = {
    "pread": lambda disk: disk.pread(1, 0),
    "pread-nothing": lambda disk: disk.pread(0, 0),
    "readinto": lambda disk: disk.readinto(bytearray(1), 0),
    "preadv": lambda disk: disk.preadv([bytearray(1)], 0),
    "pwrite": lambda disk: disk.pwrite(b"x", 0),
    "pwrite-nothing": lambda disk: disk.pwrite(b"", 0),
    "pwritev": lambda disk: disk.pwritev([b"x"], 0),
    "write_zeroes": lambda disk: disk.write_zeroes(1, 0),
    "discard": lambda disk: disk.discard(1, 0),
    "flush": lambda disk: disk.flush(),
    "truncate": lambda disk: disk.truncate(512),
    "block_status": lambda disk: disk.block_status(0, 1),
    "extents": lambda disk: anext(disk.extents()),  # type: ignore[arg-type]
    "lent": lambda disk: disk.lent().__aenter__(),
}

WRITES = ("pwrite", "pwritev", "write_zeroes", "discard", "truncate")


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("call", CALLS)
async def test_closed_disk_refuses_every_call(call: str, mode: Any) -> None:
    disk = await open_raw("disk", mode, storage=MemoryStorage(TEXT))
    await disk.close()
    assert disk.closed
    with pytest.raises(ImageClosed):
        await CALLS[call](disk)


@pytest.mark.parametrize("call", WRITES)
async def test_read_only_disk_takes_no_writes(call: str) -> None:
    storage = MemoryStorage(TEXT)
    async with open_raw("disk", storage=storage) as disk:
        assert disk.readonly
        with pytest.raises(ReadOnly):
            await CALLS[call](disk)
        await disk.flush()
        assert await disk.pread(SIZE, 0) == TEXT


async def test_another_loop_is_refused(disk: RawImage) -> None:
    def elsewhere() -> BaseException | None:
        async def call() -> None:
            await disk.pread(1, 0)

        try:
            asyncio.run(call())
        except StateError as error:
            return error
        return None

    with pytest.raises(StateError, match="another event loop"):
        raise await asyncio.wrap_future(_in_thread(elsewhere)) or AssertionError


def _in_thread(function: Callable[[], Any]) -> Any:
    import concurrent.futures
    import threading

    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    threading.Thread(target=lambda: future.set_result(function())).start()
    return future


# --------------------------------------------------------------------- closing


async def test_close_is_idempotent_and_waits_for_requests(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(TEXT)
    disk = await open_raw(path, "r+")
    write = asyncio.create_task(disk.pwrite(b"z" * SIZE, 0))
    await asyncio.sleep(0)
    await asyncio.gather(disk.close(), disk.close())
    await disk.close()
    assert write.done()
    assert await write == SIZE
    assert path.read_bytes() == b"z" * SIZE


@pytest.mark.parametrize("times", [1, 3])
async def test_close_cancelled_releases_everything(tmp_path: Path, times: int) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(TEXT)
    disk = await open_raw(path, "r+")
    await disk.pwrite(b"x", 0)
    task = asyncio.create_task(disk.close())
    for _ in range(times):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])
    async with open_raw(path, "r+"):  # the locks are free
        pass


async def test_close_cancelled_and_failing_is_heard() -> None:
    fault = Fault("error", op="flush")
    storage = FaultStorage(MemoryStorage(TEXT, inline=False), fault)
    disk = await open_raw("disk", "r+", storage=storage)
    await disk.pwrite(b"x", 0)
    task = asyncio.create_task(disk.close())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert storage.count("close") == 1


async def test_body_that_fails_is_told_before_a_close_that_fails() -> None:
    storage = FaultStorage(MemoryStorage(TEXT), Fault("error", op="flush"))

    async def use() -> None:
        async with open_raw("disk", "r+", storage=storage) as disk:
            await disk.pwrite(b"x", 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await use()
    assert "Closing 'disk' failed too" in caught.value.__notes__[0]


async def test_lent_file_keeps_the_disk_open(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(TEXT)
    disk = await open_raw(path)
    async with disk.lent() as file:
        assert file is not None
        closing = asyncio.create_task(disk.close())
        for _ in range(5):
            await asyncio.sleep(0)
        buffer = bytearray(9)
        file.read_into([buffer], 2)
        assert buffer == TEXT[2:11]
        assert not closing.done()
    await closing
    async with open_raw("disk", storage=MemoryStorage(TEXT)) as memory, memory.lent() as nothing:
        assert nothing is None


# -------------------------------------------------------- cancellation, fairness


@pytest.mark.parametrize("turns", range(4))
async def test_cancelled_write_is_whole_or_absent(tmp_path: Path, turns: int) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(1 << 20))
    async with open_raw(path, "r+") as disk:
        task = asyncio.create_task(disk.pwrite(b"\1" * (1 << 20), 0))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await disk.pread(1 << 20, 0) in (bytes(1 << 20), b"\1" * (1 << 20))
        await disk.pwrite(b"\2" * (1 << 20), 0)
    assert path.read_bytes() == b"\2" * (1 << 20)


@pytest.mark.parametrize("calls", [("pread",), ("pwrite",), ("flush",), ("pread", "pwrite")])
async def test_flat_out_tasks_give_the_loop_turns(disk: RawImage, calls: tuple[str, ...]) -> None:
    done = 0

    async def work(call: Call) -> None:
        nonlocal done
        while done < 20 * INLINE_REQUESTS:
            await call(disk)
            done += 1

    tasks = [asyncio.create_task(work(CALLS[call])) for call in calls]
    longest = seen = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        longest, seen = max(longest, done - seen), done
    await asyncio.gather(*tasks)
    assert longest <= INLINE_REQUESTS + len(calls)


# ---------------------------------------------------------------------- opening


async def test_open_raw_creates_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    with pytest.raises(ImageNotFound):
        await open_raw(path, "r+")
    async with open_raw(path, "r+", create=True) as disk:
        assert disk.size == 0
        await disk.truncate(512)
    async with open_raw(path, "r+", create=True) as disk:
        assert disk.size == 512


@pytest.mark.parametrize(
    "wish",
    [{"mode": "w"}, {"cache": "fast"}, {"create": True}, {"mode": "r", "create": True}],
)
def test_open_raw_wrong_argument_is_refused_at_once(wish: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        open_raw("nowhere", **wish)


async def test_open_raw_of_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        await open_raw(tmp_path)


async def test_open_raw_takes_locks(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(TEXT)
    async with open_raw(path, "r+"):
        with pytest.raises(ImageLocked):
            await open_raw(path)
        async with open_raw(path, lock=False) as second:
            assert await second.pread(5, 0) == TEXT[:5]
    async with open_raw(path), open_raw(path):
        with pytest.raises(ImageLocked):
            await open_raw(path, "r+")


async def test_open_raw_direct_reads_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(TEXT)
    try:
        disk = await open_raw(path, "r+", cache="none")
    except StorageError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("the file system of the temporary directory has no O_DIRECT")
    async with disk:
        await disk.pwrite(b"abc", 777)
        assert await disk.pread(5, 776) == TEXT[776:777] + b"abc" + TEXT[780:781]
        async with disk.lent() as file:
            assert file is None
    assert path.read_bytes()[777:780] == b"abc"
    assert os.stat(path).st_size == SIZE


async def test_raw_image_is_public() -> None:
    assert qedasync.RawImage is RawImage
    assert qedasync.open_raw is open_raw
