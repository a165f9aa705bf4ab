"""The portable storage: short transfers, host errors, and threads that are slow to end."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiofiles.threadpool import wrap

from qedasync.errors import ImageNotFound, StorageError
from qedasync.storage.aiofiles import AiofilesStorage
from tests.storage.backends import content

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class ScriptedFile(io.FileIO):
    """A file whose transfers are short, fail or wait as the test wants."""

    limit: int | None = None
    error: OSError | None = None
    gate: threading.Event | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r+")
        self.entered = threading.Event()
        self.entries = 0

    def _script(self) -> None:
        self.entries += 1
        self.entered.set()
        if self.gate is not None:
            self.gate.wait()
        if self.error is not None:
            raise self.error

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._script()
        view = memoryview(buffer)
        return super().readinto(view if self.limit is None else view[: self.limit])

    def write(self, data: ReadableBuffer, /) -> int:
        self._script()
        view = memoryview(data)
        return super().write(view if self.limit is None else view[: self.limit])


@asynccontextmanager
async def scripted(
    directory: Path, initial: bytes
) -> AsyncIterator[tuple[AiofilesStorage, ScriptedFile]]:
    path = directory / "scripted.img"
    path.write_bytes(initial)
    file, executor = ScriptedFile(path), ThreadPoolExecutor(1)
    storage = AiofilesStorage(wrap(file, executor=executor), executor, path=path, size=len(initial))
    try:
        yield storage, file
    finally:
        await storage.close()


async def entered(file: ScriptedFile) -> None:
    """Wait until a thread is inside a transfer of ``file``."""
    while not file.entered.is_set():  # noqa: ASYNC110 - a thread sets it
        await asyncio.sleep(0)


async def test_open_missing_file_raises_not_found(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound) as caught:
        await AiofilesStorage.open(tmp_path / "none")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "none")


async def test_open_directory_raises_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        await AiofilesStorage.open(tmp_path)
    assert caught.value.errno == errno.EISDIR


async def test_open_create_makes_a_file_and_keeps_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    storage = await AiofilesStorage.open(path, writable=True, create=True)
    await storage.write([b"abc"], 0)
    await storage.close()
    storage = await AiofilesStorage.open(path, writable=True, create=True)
    assert storage.size == 3
    await storage.close()
    assert path.read_bytes() == b"abc"


async def test_open_read_only_refuses_writes(tmp_path: Path) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"abc")
    storage = await AiofilesStorage.open(path)
    for call in (storage.write([b"x"], 0), storage.truncate(0), storage.write_zeroes(0, 1)):
        with pytest.raises(StorageError) as caught:
            await call
        assert caught.value.errno == errno.EBADF
    assert await content(storage) == b"abc"
    await storage.close()


@pytest.mark.parametrize("lead", range(6))
async def test_open_cancelled_leaves_nothing_open(tmp_path: Path, lead: int) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"abc")
    task = asyncio.create_task(AiofilesStorage.open(path))
    for _ in range(lead):
        await asyncio.sleep(0)
    task.cancel()
    try:
        storage = await task
    except asyncio.CancelledError:
        pass  # the fixtures look for the descriptor and the thread
    else:
        await storage.close()


async def test_open_cancelled_while_the_host_opens_closes_the_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    task = asyncio.create_task(AiofilesStorage.open(fifo))  # waits for a writer
    for _ in range(5):
        await asyncio.sleep(0)
        task.cancel()
    assert not task.done()
    await asyncio.to_thread(lambda: os.close(os.open(fifo, os.O_WRONLY)))
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_short_reads_are_continued(tmp_path: Path) -> None:
    async with scripted(tmp_path, b"0123456789") as (storage, file):
        file.limit = 3
        buffer = bytearray(9)
        await storage.read_into([buffer], 2)
        assert buffer == b"23456789\0"


async def test_short_writes_are_continued(tmp_path: Path) -> None:
    async with scripted(tmp_path, b"..........") as (storage, file):
        file.limit = 3
        await storage.write([b"01234567"], 1)
        assert await content(storage) == b".01234567."


async def test_write_of_which_the_host_takes_nothing_raises_eio(tmp_path: Path) -> None:
    async with scripted(tmp_path, b"abc") as (storage, file):
        file.limit = 0
        with pytest.raises(StorageError) as caught:
            await storage.write([b"x"], 0)
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("op", ["read", "write", "write_zeroes"])
async def test_host_error_carries_errno_offset_length_and_path(tmp_path: Path, op: str) -> None:
    async with scripted(tmp_path, bytes(100)) as (storage, file):
        file.error = OSError(errno.ENOSPC, "No space")
        calls = {
            "read": storage.read_into([bytearray(4), bytearray(1)], 7),
            "write": storage.write([b"abcd", b"e"], 7),
            "write_zeroes": storage.write_zeroes(7, 5),
        }
        for name, call in calls.items():
            if name != op:
                call.close()
        with pytest.raises(StorageError) as caught:
            await calls[op]
        error = caught.value
        assert (error.errno, error.offset, error.length) == (errno.ENOSPC, 7, 5)
        assert error.filename == str(tmp_path / "scripted.img")
        assert error.__cause__ is file.error


async def test_failed_write_that_grew_the_file_shows_in_the_size(tmp_path: Path) -> None:
    class FailsLater(ScriptedFile):
        def _script(self) -> None:
            super()._script()
            if self.entries > 1:
                raise OSError(errno.ENOSPC, "No space")

    path = tmp_path / "grown.img"
    path.write_bytes(b"abc")
    file, executor = FailsLater(path), ThreadPoolExecutor(1)
    file.limit = 4
    storage = AiofilesStorage(wrap(file, executor=executor), executor, size=3)
    with pytest.raises(StorageError):
        await storage.write([b"0123456789"], 3)
    assert storage.size == 7
    await storage.close()


async def test_read_cancelled_in_the_thread_settles_before_it_raises(tmp_path: Path) -> None:
    async with scripted(tmp_path, b"0123456789") as (storage, file):
        file.gate = threading.Event()
        buffer = bytearray(10)
        task = asyncio.create_task(storage.read_into([buffer], 0))
        await entered(file)
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        file.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        entries = file.entries
        buffer[:] = bytes(10)
        await storage.flush()
        assert not any(buffer)
        assert file.entries == entries


async def test_write_cancelled_in_the_thread_is_whole(tmp_path: Path) -> None:
    async with scripted(tmp_path, b"..........") as (storage, file):
        file.gate, file.limit = threading.Event(), 2
        task = asyncio.create_task(storage.write([b"012345"], 3))
        await entered(file)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        file.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await content(storage) == b"...012345."


async def test_write_cancelled_before_its_turn_does_not_start(tmp_path: Path) -> None:
    async with scripted(tmp_path, b"..........") as (storage, file):
        file.gate = threading.Event()
        first = asyncio.create_task(storage.write([b"a"], 0))
        second = asyncio.create_task(storage.write([b"b"], 1))
        await entered(file)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second  # at once, though the first one still runs
        file.gate.set()
        await first
        assert await content(storage) == b"a........."


async def test_failing_write_cancelled_in_the_thread_raises_the_cancellation(
    tmp_path: Path,
) -> None:
    async with scripted(tmp_path, b"...") as (storage, file):
        file.gate, file.error = threading.Event(), OSError(errno.EIO, "broken")
        task = asyncio.create_task(storage.write([b"x"], 0))
        await entered(file)
        task.cancel()
        await asyncio.sleep(0)
        file.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("cancelled_before", [False, True])
def test_loop_shutdown_during_a_write_leaves_it_whole(
    tmp_path: Path, cancelled_before: bool
) -> None:
    """`asyncio.run` cancels every task, those that wait for our threads too."""
    path = tmp_path / "old.img"
    path.write_bytes(b"..........")
    file, executor = ScriptedFile(path), ThreadPoolExecutor(1)
    gate = file.gate = threading.Event()
    file.limit = 2

    async def main() -> asyncio.Task[None]:
        storage = AiofilesStorage(wrap(file, executor=executor), executor, size=10)
        writing = asyncio.create_task(storage.write([b"012345"], 3))
        await entered(file)
        if cancelled_before:
            writing.cancel()
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0, gate.set)
        return writing

    writing = asyncio.run(main())
    executor.shutdown()
    file.close()
    assert writing.cancelled()
    assert path.read_bytes() == b"...012345."


async def test_close_cancelled_before_the_thread_has_it_closes_all_the_same(
    tmp_path: Path,
) -> None:
    path = tmp_path / "old.img"
    path.write_bytes(b"abc")
    file, executor, gate = ScriptedFile(path), ThreadPoolExecutor(1), threading.Event()
    storage = AiofilesStorage(wrap(file, executor=executor), executor)
    executor.submit(gate.wait)
    closing = asyncio.create_task(storage.close())
    for _ in range(3):
        await asyncio.sleep(0)
        closing.cancel()
    assert not closing.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert file.closed


async def test_close_cancelled_closes_all_the_same(tmp_path: Path) -> None:
    async with scripted(tmp_path, b"abc") as (storage, file):
        file.gate = threading.Event()
        writing = asyncio.create_task(storage.write([b"x"], 0))
        await entered(file)
        closing = asyncio.create_task(storage.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.sleep(0)
        assert not closing.done()
        file.gate.set()
        await writing
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert file.closed
