"""Images inside disks: as the file that an image lies in, and as a backing file.

DiskStorage keeps the storage contract in tests/storage.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import qedasync
from qedasync import Disk, DiskStorage, ExtentKind, MemoryStorage, StorageError
from qedasync.disk import DiskSource
from qedasync.errors import BackingError
from qedasync.storage.faults import Fault, FaultStorage
from tests.helpers import qemu
from tests.helpers.model import blank

MIB = 1 << 20


def test_both_kinds_are_disks() -> None:
    assert issubclass(qedasync.Image, object)
    for name in ("pread", "pwritev", "block_status", "extents", "close"):
        assert callable(getattr(qedasync.Image, name))
        assert callable(getattr(qedasync.RawImage, name))


# ---------------------------------------------------------- an image in an image


async def nested(folder: Path) -> AsyncIterator[Disk]:
    """An image in an image in a raw file."""
    raw = await qedasync.open_raw(folder / "outer.raw", "r+", create=True)
    if not raw.size:
        storage = DiskStorage(raw)
        await qedasync.create("middle", 64 * MIB, cluster_size=4096, table_size=4, storage=storage)
    else:
        storage = DiskStorage(raw)
    middle = await qedasync.open("middle", "r+", storage=storage)
    inner_storage = DiskStorage(middle)
    if not (await middle.pread(4, 0)).startswith(b"QED"):
        await qedasync.create("inner", 8 * MIB, storage=inner_storage)
    async with qedasync.open("inner", "r+", storage=inner_storage) as inner:
        yield inner


async def test_image_in_an_image_in_a_raw_file_keeps_its_bytes(tmp_path: Path) -> None:
    random = Random(1)
    model = bytearray(8 * MIB)
    for turn in range(3):
        async for inner in nested(tmp_path):
            assert await inner.pread(8 * MIB, 0) == model
            async with asyncio.TaskGroup() as group:
                for number in range(40):
                    length = random.randrange(1, 5000)
                    pos = number * 200_000 + random.randrange(1000) + turn * 6000
                    data = random.randbytes(length)
                    model[pos : pos + length] = data
                    group.create_task(inner.pwrite(data, pos))
            await inner.write_zeroes(300_000, turn * MIB)
            model[turn * MIB : turn * MIB + 300_000] = bytes(300_000)
            assert await inner.pread(8 * MIB, 0) == model
            assert (await inner.check()).ok  # type: ignore[attr-defined]


@qemu.needs_qemu
async def test_image_in_an_image_is_what_qemu_reads(tmp_path: Path) -> None:
    async for inner in nested(tmp_path):
        await inner.pwrite(b"\xa5" * 65536, 100_000)
    outer = f'{{"driver":"file","filename":"{tmp_path}/outer.raw"}}'
    spec = f'json:{{"driver":"qed","file":{{"driver":"qed","file":{outer}}}}}'
    said = qemu.run("qemu-io", "-r", "-c", "read -P 165 100000 65536", spec).stdout
    assert "read 65536/65536" in said
    assert "Pattern" not in said


async def test_storage_in_an_image_cut_shorter_reads_zeroes_when_longer_again() -> None:
    image = await qedasync.open("disk", "r+", storage=MemoryStorage(blank(0, 4096, 2)))
    storage = DiskStorage(image)
    await storage.write([b"x" * 10_000], 0)
    await storage.truncate(5000)
    assert (storage.size, image.size) == (5000, 10_240)  # an image cannot be made shorter
    await storage.truncate(9000)
    buffer = bytearray(b"?" * 9000)
    await storage.read_into([buffer], 0)
    assert buffer == b"x" * 5000 + bytes(4000)
    await storage.close()


async def test_storage_next_data_follows_the_disk_s_map() -> None:
    image = await qedasync.open("disk", "r+", storage=MemoryStorage(blank(MIB, 4096, 2)))
    storage = DiskStorage(image)
    await storage.write([b"x"], 500_000)
    assert await storage.next_data(0) == 500_000 // 4096 * 4096
    assert await storage.next_data(600_000) == MIB == storage.size
    await storage.close()


@pytest.mark.parametrize("op", ["read", "write", "flush", "truncate"])
async def test_storage_of_a_failing_disk_fails_like_a_file(op: Any) -> None:
    faulty = FaultStorage(
        MemoryStorage(bytes(MIB)), Fault("error", op=op, errno=errno.ENOSPC, once=False)
    )
    disk = await qedasync.open_raw("disk", "r+", storage=faulty)
    storage = DiskStorage(disk)
    calls = {
        "read": lambda: storage.read_into([bytearray(9)], 7),
        "write": lambda: storage.write([b"123456789"], 7),
        "flush": lambda: storage.flush(),
        "truncate": lambda: storage.truncate(2 * MIB),
    }
    with pytest.raises(StorageError) as caught:
        await calls[op]()
    assert caught.value.errno == errno.ENOSPC
    if op in ("read", "write"):
        assert (caught.value.offset, caught.value.length) == (7, 9)
    assert storage.size == MIB
    faulty.clear()
    if op == "flush":
        with pytest.raises(qedasync.ImageFailed):
            await storage.close()
    else:
        await storage.close()


async def test_image_on_a_read_only_disk_cannot_be_written(tmp_path: Path) -> None:
    await qedasync.create(tmp_path / "a.qed", MIB)
    disk = await qedasync.open_raw(tmp_path / "a.qed")
    async with qedasync.open("a.qed", "r+", storage=DiskStorage(disk)) as image:
        with pytest.raises(StorageError) as caught:
            await image.pwrite(b"x", 0)
        assert caught.value.errno == errno.EROFS


# ------------------------------------------------------------- as a backing file


@pytest.mark.parametrize("kind", ["raw", "qed", "memory"])
async def test_open_over_a_disk_reads_and_copies_from_it(tmp_path: Path, kind: str) -> None:
    content = os.urandom(MIB)
    (tmp_path / "base.raw").write_bytes(content)
    await qedasync.convert(tmp_path / "base.raw", tmp_path / "base.qed")
    await qedasync.create(
        tmp_path / "top.qed",
        2 * MIB,
        backing_file="nowhere",
        backing_unchecked=True,
    )
    base: Disk
    if kind == "raw":
        base = await qedasync.open_raw(tmp_path / "base.raw")
    elif kind == "qed":
        base = await qedasync.open(tmp_path / "base.qed")
    else:
        base = await qedasync.open_raw("base", storage=MemoryStorage(content))
    async with qedasync.open(tmp_path / "top.qed", "r+", backing=base) as top:
        assert await top.pread(2 * MIB, 0) == content + bytes(MIB)
        await top.pwrite(b"hello", 100_000)
        model = bytearray(content + bytes(MIB))
        model[100_000:100_005] = b"hello"
        assert await top.pread(2 * MIB, 0) == model
        runs = await top.block_status(0, 2 * MIB)
        assert {run.kind for run in runs} == {
            ExtentKind.DATA,
            ExtentKind.BACKING,
            ExtentKind.UNALLOCATED,
        }
        assert not base.closed
    assert base.closed


async def test_open_that_fails_closes_the_disk_it_was_given(tmp_path: Path) -> None:
    base = await qedasync.open_raw("base", storage=MemoryStorage(bytes(512)))
    with pytest.raises(qedasync.ImageNotFound):
        await qedasync.open(tmp_path / "nowhere", backing=base)
    assert base.closed


async def test_backing_disk_that_is_damaged_is_named() -> None:
    content = bytearray(blank(MIB, 4096, 2))
    content[4096:4104] = (12345).to_bytes(8, "little")
    base = await qedasync.open("damaged", storage=MemoryStorage(bytes(content)))
    source = DiskSource(base)
    for call in (source.read_into([bytearray(9)], 0), source.block_status(0, 9)):
        with pytest.raises(BackingError, match="damaged") as caught:
            await call
        assert caught.value.errno == errno.EINVAL
    await source.close()
    with pytest.raises(BackingError):
        await source.read_into([bytearray(9)], 0)
