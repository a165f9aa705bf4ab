"""Bulk: what is in the image when it ends well, badly, or in the middle of a power cut."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

import qedasync
from qedasync import StateError, StorageError
from qedasync.engine.bulk import Bulk
from qedasync.errors import ImageFailed, ReadOnly
from qedasync.image import Image
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.host_file import HostFile
from qedasync.storage.posix import PosixStorage
from tests.helpers import qemu

CLUSTER = 4096
SIZE = 5000 * CLUSTER + 512
"""More than four tables of 1024 entries, and a last cluster that is not whole."""


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    await qedasync.create(tmp_path / "a.qed", SIZE, cluster_size=CLUSTER, table_size=2)
    return tmp_path / "a.qed"


def fill(bulk: Bulk, pos: int, data: bytes) -> None:
    n = -(-len(data) // CLUSTER)
    offset = bulk.take(n)
    bulk.file.write([data], offset)
    bulk.link(pos, n, offset)


async def fill_some(image: Image) -> bytes:
    """Fill pieces in odd order; what the image then reads as."""
    model = bytearray(SIZE)
    async with image.bulk() as bulk:
        assert bulk is not None
        assert bulk.cluster_size == CLUSTER
        for first, n in [(4900, 100), (0, 1), (500, 700), (2047, 2), (3, 1)]:
            data = os.urandom(n * CLUSTER)
            fill(bulk, first * CLUSTER, data)
            model[first * CLUSTER : (first + n) * CLUSTER] = data
        fill(bulk, 5000 * CLUSTER, b"z" * 512)
        model[5000 * CLUSTER :] = b"z" * 512
    return bytes(model)


async def test_bulk_is_in_the_image_and_on_disk(path: Path) -> None:
    async with qedasync.open(path, "r+") as image:
        model = await fill_some(image)
        assert await image.pread(SIZE, 0) == model
        assert not image.features
        await image.pwrite(b"more", 100 * CLUSTER)
        assert (await image.check()).ok
    async with qedasync.open(path) as image:
        assert await image.pread(100 * CLUSTER, 0) == model[: 100 * CLUSTER]
        assert await image.pread(SIZE - 101 * CLUSTER, 101 * CLUSTER) == model[101 * CLUSTER :]
        assert (await image.check()).ok


@qemu.needs_qemu
async def test_bulk_is_sound_to_qemu(path: Path, tmp_path: Path) -> None:
    async with qedasync.open(path, "r+") as image:
        (tmp_path / "model").write_bytes(await fill_some(image))
    qemu.compare(path, tmp_path / "model")
    found = qemu.check(path)
    phantoms = qemu.phantom_leaks(path, CLUSTER)
    assert (found["corruptions"], found["leaks"]) == (0, phantoms)


async def test_bulk_reserves_no_room_that_stays(path: Path) -> None:
    async with qedasync.open(path, "r+") as image, image.bulk() as bulk:
        assert bulk is not None
        fill(bulk, 0, b"x" * CLUSTER)
    assert path.stat().st_size == (3 + 1 + 2) * CLUSTER
    assert path.stat().st_blocks * 512 <= 8 * CLUSTER


async def test_bulk_of_nothing_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    async with qedasync.open(path, "r+") as image, image.bulk() as bulk:
        assert bulk is not None
    assert path.read_bytes() == before


async def test_bulk_that_links_nothing_leaves_the_image_empty(path: Path) -> None:
    async with qedasync.open(path, "r+") as image:
        async with image.bulk() as bulk:
            assert bulk is not None
            bulk.file.write([b"x" * CLUSTER], bulk.take(1))
        await image.pwrite(b"y", 7)
        assert await image.pread(CLUSTER, 0) == bytes(7) + b"y" + bytes(CLUSTER - 8)


async def test_bulk_that_ends_with_an_error_leaves_the_image_empty(path: Path) -> None:
    async def use(image: Image) -> None:
        async with image.bulk() as bulk:
            assert bulk is not None
            fill(bulk, 0, b"x" * CLUSTER)
            raise ZeroDivisionError

    async with qedasync.open(path, "r+") as image:
        with pytest.raises(ZeroDivisionError):
            await use(image)
        assert await image.pread(SIZE, 0) == bytes(SIZE)
        await image.pwrite(b"y", 7)  # into the cluster that the bulk had written
        assert await image.pread(CLUSTER, 0) == bytes(7) + b"y" + bytes(CLUSTER - 8)
        assert (await image.check()).ok


async def test_bulk_makes_others_wait(path: Path) -> None:
    async with qedasync.open(path, "r+") as image:
        async with image.bulk() as bulk:
            assert bulk is not None
            read = asyncio.create_task(image.pread(4, 0))
            write = asyncio.create_task(image.pwrite(b"late", CLUSTER))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not read.done()
            assert not write.done()
            fill(bulk, 0, b"data" * 1024)
        assert await read == b"data"
        await write
        assert await image.pread(8, CLUSTER - 4) == b"datalate"
        assert (await image.check()).ok


async def test_bulk_needs_an_empty_image_on_a_plain_file(path: Path, tmp_path: Path) -> None:
    async with qedasync.open(path, "r") as image:
        with pytest.raises(ReadOnly):
            await image.bulk().__aenter__()
    async with qedasync.open(path, "r+", storage="memory") as image, image.bulk() as bulk:
        assert bulk is None
    async with qedasync.open(path, "r+") as image:
        await image.pwrite(b"x", 0)
        async with image.bulk() as bulk:
            assert bulk is None
            await image.pwrite(b"y", 0)
    over = tmp_path / "b.qed"
    await qedasync.create(over, backing_file="a.qed")
    for backing in (True, False):
        async with qedasync.open(over, "r+", backing=backing) as image, image.bulk() as bulk:
            assert bulk is None


async def test_bulk_beside_a_write_that_came_first_is_refused(path: Path) -> None:
    async with qedasync.open(path, "r+") as image:
        write = asyncio.create_task(image.pwrite(b"first", 0))
        await asyncio.sleep(0)
        with pytest.raises(StateError, match="meanwhile"):
            await image.bulk().__aenter__()
        await write
        assert (await image.check()).ok


class Lending(FaultStorage):
    """Faulty for the image, sound for those it lends its file to."""

    inner: PosixStorage

    def lend(self) -> HostFile | None:
        return self.inner.lend()


@pytest.mark.parametrize("op", ["write", "flush", "truncate"])
@pytest.mark.parametrize("call", [1, 2])
async def test_bulk_tables_that_fail_stop_the_image_and_harm_nothing(
    path: Path, op: str, call: int
) -> None:
    fault = Fault("error", op=op, call=call, errno=errno.ENOSPC)  # type: ignore[arg-type]
    storage = Lending(await PosixStorage.open(path, writable=True), fault)
    image = await qedasync.open(path, "r+", storage=storage)
    with pytest.raises(StorageError) as caught:
        await fill_some(image)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ImageFailed):
        await image.pwrite(b"x", 0)
    with pytest.raises(ImageFailed):
        await image.close()
    async with qedasync.open(path, "r+") as image:
        result = await image.check()
        assert result.corruptions == 0
        assert await image.pread(SIZE, 0) == bytes(SIZE)


async def test_bulk_flushes_data_then_tables_before_l1(path: Path) -> None:
    storage = Lending(await PosixStorage.open(path, writable=True))
    async with qedasync.open(path, "r+", storage=storage) as image:
        await fill_some(image)
        steps = [
            str(call.event or call.op) for call in storage.calls if call.op in ("write", "flush")
        ]
    shortened = [step for i, step in enumerate(steps) if i == 0 or steps[i - 1] != step]
    assert shortened == ["flush_to_disk", "l2_alloc_write", "flush_to_disk", "l1_update"]


@pytest.mark.parametrize("turns", range(12))
async def test_bulk_cancelled_at_its_end_is_in_the_image(path: Path, turns: int) -> None:
    async with qedasync.open(path, "r+") as image:
        filled = asyncio.Event()

        async def use() -> None:
            async with image.bulk() as bulk:
                assert bulk is not None
                fill(bulk, 0, b"x" * CLUSTER)
                filled.set()

        task = asyncio.create_task(use())
        await filled.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await image.pread(CLUSTER, 0) == b"x" * CLUSTER
        await image.pwrite(b"y", CLUSTER)
        assert (await image.check()).ok
