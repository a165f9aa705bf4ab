"""Disks without an event loop are what the others are, and never suspend for more than a turn."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest

import qedasync
from qedasync import BlockingImage, BlockingRaw, Extent, open_storage
from tests.helpers.model import blank

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it stands on Linux's calls")

T = TypeVar("T")

CLUSTER = 4096
SIZE = 5 << 20  # two L2 tables of two clusters each


def at_once(call: Coroutine[Any, Any, T]) -> T:
    """Run a call that may give turns and do nothing else."""
    try:
        while True:
            assert call.send(None) is None
    except StopIteration as end:
        value: T = end.value
        return value


def storage_of(path: Path, *, writable: bool = False) -> qedasync.Storage:
    return at_once(open_storage(path, "blocking", writable=writable))


def open_image(path: Path, *, writable: bool = False) -> BlockingImage:
    storage = storage_of(path, writable=writable)
    image = at_once(BlockingImage.open(storage, str(path), writable=writable))
    assert image is not None
    return image


async def runs_of(disk: Any) -> list[Extent]:
    return [run async for run in disk.extents()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image with data here and there, zeroes, and much that is not allocated."""
    path, rng = tmp_path / "x.qed", Random(7)

    async def fill() -> None:
        await qedasync.create(path, SIZE, cluster_size=CLUSTER, table_size=2)
        async with qedasync.open(path, "r+") as disk:
            for pos in rng.sample(range(0, SIZE, CLUSTER), 200):
                await disk.pwrite(rng.randbytes(CLUSTER), pos)
            await disk.write_zeroes(8 * CLUSTER, 16 * CLUSTER)

    asyncio.run(fill())
    return path


async def facts_of(path: Path) -> tuple[list[Extent], list[Extent], bytes, Any]:
    async with qedasync.open(path) as disk:
        status = await disk.block_status(CLUSTER + 7, SIZE - 2 * CLUSTER)
        data = bytes(await disk.pread(SIZE, 0))
        return await runs_of(disk), status, data, await disk.check()


def test_image_has_the_runs_bytes_and_check_of_an_open_one(path: Path) -> None:
    runs, status, data, check = asyncio.run(facts_of(path))
    disk = open_image(path)
    buffer = bytearray(SIZE)
    assert at_once(disk.readinto(buffer, 0)) == SIZE
    assert buffer == data
    assert at_once(runs_of(disk)) == runs
    assert at_once(disk.block_status(CLUSTER + 7, SIZE - 2 * CLUSTER)) == status
    assert at_once(disk.check()) == check
    at_once(disk.close())


def test_image_longer_than_one_turn_gives_turns_and_goes_on(path: Path) -> None:
    disk = open_image(path)
    walk = runs_of(disk)
    assert walk.send(None) is None  # a turn: more than a hundred runs
    assert len(at_once(walk)) > 100
    at_once(disk.close())


def test_image_with_corrupt_table_raises_what_an_open_one_does(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(CLUSTER)  # the first L1 entry
        file.write((12345).to_bytes(8, "little"))
    disk = open_image(path)
    with pytest.raises(qedasync.CorruptTable) as alone:
        at_once(disk.block_status(0, CLUSTER))
    at_once(disk.close())

    async def status() -> None:
        async with qedasync.open(path) as disk:
            await disk.block_status(0, CLUSTER)

    with pytest.raises(qedasync.CorruptTable) as on_loop:
        asyncio.run(status())
    assert str(alone.value) == str(on_loop.value)


def test_image_whose_file_cannot_be_read_raises_where(path: Path) -> None:
    disk = open_image(path)
    at_once(disk.close())
    with pytest.raises(qedasync.StorageError) as caught:
        at_once(disk.readinto(bytearray(SIZE), 0))
    assert caught.value.offset is not None


def test_image_is_grown_to_the_same_bytes(path: Path, tmp_path: Path) -> None:
    stale = tmp_path / "stale.qed"  # an entry past the end, whose cluster holds something
    shutil.copy(path, stale)
    with stale.open("r+b") as file:
        file.seek(48)
        file.write((SIZE // 2 + 512).to_bytes(8, "little"))
    for source in (path, stale):
        one, two = tmp_path / "one", tmp_path / "two"
        shutil.copy(source, one)
        shutil.copy(source, two)

        async def grow(target: Path = two) -> None:
            async with qedasync.open(target, "r+") as disk:
                await disk.truncate(2 * SIZE)

        asyncio.run(grow())
        disk = open_image(one, writable=True)
        at_once(disk.truncate(2 * SIZE))
        assert disk.size == 2 * SIZE
        at_once(disk.close())
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", ["a", "b" * 600, None])
def test_image_gets_a_backing_file_s_name_as_an_open_one_does(
    tmp_path: Path, name: str | None
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for target in (one, two):
        target.write_bytes(blank(SIZE, CLUSTER, 2, "old"))

    async def change() -> None:
        async with qedasync.open(two, "r+", backing=False) as disk:
            await disk.change_backing_file(name, "raw")

    asyncio.run(change())
    storage = storage_of(one, writable=True)
    disk = at_once(BlockingImage.open(storage, "one", writable=True, backing=False))
    assert disk is not None
    at_once(disk.change_backing_file(name, "raw"))
    with pytest.raises(qedasync.RequestError):
        at_once(disk.change_backing_file("c" * 5000))
    at_once(disk.close())
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("size", [SIZE - 512, SIZE + 1, 1 << 62])
def test_image_does_not_take_a_size_that_an_open_one_refuses(path: Path, size: int) -> None:
    disk = open_image(path, writable=True)
    before = path.read_bytes()
    with pytest.raises(qedasync.RequestError, match="Cannot set the size"):
        at_once(disk.truncate(size))
    at_once(disk.close())
    assert path.read_bytes() == before


def patched(content: bytes, place: int, value: int) -> bytes:
    return content[:place] + value.to_bytes(8, "little") + content[place + 8 :]


@pytest.mark.parametrize(
    ("content", "reads", "writes"),
    [
        (blank(SIZE, CLUSTER, 2), True, True),
        (blank(SIZE, CLUSTER, 2, "base"), False, False),
        (patched(blank(SIZE, CLUSTER, 2), 16, 2), True, False),  # NEED_CHECK
        (patched(blank(SIZE, CLUSTER, 2), 32, 1 << 40), True, False),  # an autoclear bit
    ],
    ids=["plain", "overlay", "need_check", "autoclear"],
)
def test_image_with_more_to_it_is_left_to_others(
    tmp_path: Path, content: bytes, reads: bool, writes: bool
) -> None:
    (tmp_path / "x").write_bytes(content)
    storage = storage_of(tmp_path / "x", writable=True)
    for writable, expected in ((False, reads), (True, writes)):
        image = at_once(BlockingImage.open(storage, "x", writable=writable))
        assert (image is not None) is expected
    at_once(storage.read_into([bytearray(4)], 0))  # still open
    at_once(storage.close())
    assert (tmp_path / "x").read_bytes() == content


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw file with a hole, that ends inside a sector."""
    path = tmp_path / "x.raw"
    with path.open("wb") as file:
        file.write(b"a" * 65536)
        file.seek(1 << 20)
        file.write(b"b" * 100)
    return path


def test_raw_file_has_the_runs_and_bytes_of_an_open_one(raw: Path) -> None:
    async def facts() -> tuple[int, list[Extent], list[Extent], bytes]:
        async with qedasync.open_raw(raw) as disk:
            data = bytes(await disk.pread(disk.size, 0))
            return disk.size, await runs_of(disk), await disk.block_status(7, disk.size - 7), data

    disk = BlockingRaw(storage_of(raw), str(raw))
    buffer = bytearray(disk.size)
    at_once(disk.readinto(buffer, 0))
    status = at_once(disk.block_status(7, disk.size - 7))
    assert (disk.size, at_once(runs_of(disk)), status, bytes(buffer)) == asyncio.run(facts())
    at_once(disk.close())


@pytest.mark.parametrize("size", [512, 4 << 20])
def test_raw_file_takes_any_size_of_whole_sectors(raw: Path, size: int) -> None:
    disk = BlockingRaw(storage_of(raw, writable=True), str(raw))
    at_once(disk.truncate(size))
    with pytest.raises(qedasync.RequestError):
        at_once(disk.truncate(size + 1))
    assert disk.size == os.path.getsize(raw) == size
    at_once(disk.close())


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (SIZE, 1), (0, SIZE + 1)])
def test_range_outside_the_disk_is_refused(path: Path, offset: int, length: int) -> None:
    disk = open_image(path)
    with pytest.raises(qedasync.RequestError):
        at_once(disk.readinto(bytearray(length), offset))
    with pytest.raises(qedasync.RequestError):
        at_once(disk.block_status(offset, length))
    at_once(disk.close())
