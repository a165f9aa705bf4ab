"""The file that a storage lends, and what there is to know of its holes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from qedasync.errors import StorageError
from qedasync.storage.aiofiles import AiofilesStorage
from qedasync.storage.host_file import lend
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.posix import PosixStorage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 5000)
    return path


async def test_lent_file_reads_and_writes_on_any_thread(path: Path) -> None:
    storage = await PosixStorage.open(path, writable=True)
    file = lend(storage)
    assert file is not None
    buffer = bytearray(b"?" * 9)

    def work() -> None:
        file.read_into([buffer], 14_997)
        file.reserve(0, 1 << 20)
        file.write([b"XY", b"Z"], 1)
        file.release(20_000, 4096)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert buffer == b"abc" + bytes(6)
    assert path.read_bytes() == b"aXYZbc" + b"abc" * 4998
    await storage.close()


async def test_lent_file_s_writes_are_flushed(path: Path) -> None:
    storage = await PosixStorage.open(path, writable=True)
    await storage.write([b"x"], 0)
    await storage.flush()
    file = lend(storage)
    assert file is not None
    file.write([b"y"], 0)
    assert storage._flusher.unsynced
    await storage.close()


async def test_lent_file_that_cannot_be_written_raises(path: Path) -> None:
    storage = await PosixStorage.open(path)
    file = lend(storage)
    assert file is not None
    with pytest.raises(OSError, match="Bad file"):
        file.write([b"y"], 0)
    file.reserve(0, 100)  # no use, no harm
    file.release(0, 100)
    assert path.read_bytes() == b"abc" * 5000
    await storage.close()


async def test_lend_of_what_has_no_plain_file_is_none(path: Path) -> None:
    assert lend(MemoryStorage(b"abc")) is None
    storage = await AiofilesStorage.open(path)
    assert lend(storage) is None
    await storage.close()
    closed = await PosixStorage.open(path)
    await closed.close()
    assert lend(closed) is None


async def test_data_runs_are_the_data(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for pos in (8192, 65536, 1 << 20):
            file.seek(pos)
            file.write(os.urandom(4096))
        file.truncate(2 << 20)
    storage = await PosixStorage.open(path)
    runs = [(pos, pos + 4096) for pos in (8192, 65536, 1 << 20)]
    assert await storage.data_runs(0, 2 << 20, 10) == runs
    assert await storage.data_runs(0, 2 << 20, 2) == runs[:2]
    assert await storage.data_runs(10_000, 66_000, 10) == [(10_000, 12_288), (65536, 66_000)]
    assert await storage.data_runs(1 << 21, 1 << 22, 10) == []
    await storage.close()
    with pytest.raises(StorageError):
        await storage.data_runs(0, 1, 1)
