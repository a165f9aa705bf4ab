"""Opening by the kind's name: what each kind gives, refuses and leaves behind."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from pathlib import Path

import pytest

from qedasync.errors import ImageLocked, ImageNotFound, RequestError, StorageError
from qedasync.storage.aiofiles import AiofilesStorage
from qedasync.storage.base import Storage
from qedasync.storage.locks import LockRole
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.opener import open_storage
from tests.storage.backends import content

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's locks and devices")

FILES = [*(pytest.param(kind, marks=linux) for kind in ("posix", "blocking")), "aiofiles"]
"""The kinds that keep what is written."""

KINDS = [*FILES, "auto", "memory"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "old.img"
    path.write_bytes(b"abc" * 1000)
    return path


@pytest.mark.parametrize("kind", KINDS)
async def test_open_each_kind_reads_the_file(path: Path, kind: str) -> None:
    storage = await open_storage(path, kind)
    assert isinstance(storage, Storage)
    assert await content(storage) == b"abc" * 1000
    await storage.close()


async def test_open_auto_is_the_best_there_is(path: Path) -> None:
    storage = await open_storage(path)
    await storage.close()
    if sys.platform == "linux":
        from qedasync.storage.posix import PosixStorage

        assert type(storage) is PosixStorage
    else:
        assert type(storage) is AiofilesStorage


@pytest.mark.parametrize("kind", FILES)
async def test_open_writable_file_keeps_what_is_written(path: Path, kind: str) -> None:
    storage = await open_storage(path, kind, writable=True)
    await storage.write([b"X"], 1)
    await storage.close()
    assert path.read_bytes()[:4] == b"aXca"


@pytest.mark.parametrize("kind", FILES)
async def test_open_readonly_file_refuses_writes(path: Path, kind: str) -> None:
    storage = await open_storage(path, kind)
    with pytest.raises(StorageError) as caught:
        await storage.write([b"X"], 1)
    assert caught.value.errno == errno.EBADF
    await storage.close()


async def test_open_memory_forgets_what_is_written(path: Path) -> None:
    storage = await open_storage(path, "memory", writable=True)
    assert type(storage) is MemoryStorage
    await storage.write([b"X"], 1)
    await storage.truncate(5)
    assert await content(storage) == b"aXcab"
    await storage.close()
    assert path.read_bytes() == b"abc" * 1000


async def test_open_memory_of_sparse_file_takes_what_is_written_only(tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"middle")
    storage = await open_storage(path, "memory")
    assert storage.size == 1 << 40
    buffer = bytearray(8)
    await storage.read_into([buffer], (1 << 39) - 1)
    assert buffer == b"\0middle\0"
    assert await storage.next_data(1 << 39 | 1 << 20) == 1 << 40
    await storage.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_open_missing_file_is_not_found(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ImageNotFound) as caught:
        await open_storage(tmp_path / "none", kind)
    assert caught.value.filename == str(tmp_path / "none")


@pytest.mark.parametrize("kind", KINDS)
async def test_open_create_makes_the_file_and_keeps_an_old_one(path: Path, kind: str) -> None:
    new = path.with_name("new.img")
    for which, size in ((new, 0), (path, 3000)):
        storage = await open_storage(which, kind, writable=True, create=True)
        assert storage.size == size
        await storage.close()
    assert new.exists() == (kind != "memory")


@pytest.mark.parametrize("kind", ["", "POSIX", "qed", None])
async def test_open_unknown_kind_is_refused(path: Path, kind: str) -> None:
    with pytest.raises(RequestError, match="'aiofiles', 'memory'"):
        await open_storage(path, kind)


async def test_open_aiofiles_direct_is_refused(path: Path) -> None:
    with pytest.raises(RequestError, match="page cache"):
        await open_storage(path, "aiofiles", direct=True)


@linux
@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_open_pipe_is_refused_at_once(
    tmp_path: Path, kind: str, writable: bool, create: bool
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError) as caught:
        await open_storage(tmp_path / "pipe", kind, writable=writable, create=create)
    assert caught.value.errno == errno.EINVAL
    assert "pipe" in str(caught.value)


@linux
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
@pytest.mark.parametrize("kind", KINDS)
async def test_open_character_device_is_refused(kind: str, device: str) -> None:
    with pytest.raises(StorageError):
        await open_storage(device, kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_open_directory_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(StorageError) as caught:
        await open_storage(tmp_path, kind)
    assert caught.value.errno in (errno.EISDIR, errno.EINVAL)


@linux
@pytest.mark.parametrize("second", FILES)
@pytest.mark.parametrize("first", FILES)
async def test_open_locked_by_a_writer_is_refused_until_it_closes(
    path: Path, first: str, second: str
) -> None:
    writer = await open_storage(path, first, writable=True, lock=LockRole.READ_WRITE)
    for role in (LockRole.READ_WRITE, LockRole.READ_ONLY, LockRole.CREATE):
        with pytest.raises(ImageLocked) as caught:
            await open_storage(path, second, writable=True, lock=role)
        assert caught.value.errno == errno.EAGAIN
        assert caught.value.filename == str(path)
    await writer.close()
    again = await open_storage(path, second, writable=True, lock=LockRole.READ_WRITE)
    await again.close()


@linux
async def test_open_memory_is_refused_beside_a_writer_and_holds_no_lock(path: Path) -> None:
    writer = await open_storage(path, writable=True, lock=LockRole.READ_WRITE)
    with pytest.raises(ImageLocked):
        await open_storage(path, "memory", lock=LockRole.READ_WRITE)
    unlocked = await open_storage(path, "memory")
    await unlocked.close()
    await writer.close()
    memory = await open_storage(path, "memory", lock=LockRole.READ_WRITE)
    writer = await open_storage(path, writable=True, lock=LockRole.READ_WRITE)
    await writer.close()
    await memory.close()


@linux
@pytest.mark.parametrize("lead", range(8))
@pytest.mark.parametrize("kind", KINDS)
async def test_open_cancelled_leaves_neither_descriptor_nor_lock(
    path: Path, kind: str, lead: int
) -> None:
    opening = asyncio.create_task(open_storage(path, kind, writable=True, lock=LockRole.READ_WRITE))
    for _ in range(lead):
        await asyncio.sleep(0)
    opening.cancel()
    try:
        storage = await opening
    except asyncio.CancelledError:
        pass
    else:  # it was done before
        await storage.close()
    again = await open_storage(path, writable=True, lock=LockRole.READ_WRITE)
    await again.close()
