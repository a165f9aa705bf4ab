"""A real ext4 file system, carried between raw and QED by QEMU and by us."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import qedasync
from tests.helpers import qemu

pytestmark = qemu.needs_qemu

KIB = 1024
MIB = 1024 * KIB

DISK_SIZE = 40 * MIB
BLOCK = 4096
WORKERS = 8

GEOMETRIES = [(4 * KIB, 2), (64 * KIB, 4), (MIB, 16)]
"""Cluster sizes in bytes with table sizes in clusters."""

geometries = pytest.mark.parametrize(("cluster_size", "table_size"), GEOMETRIES)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk with an ext4 file system that holds a part of the standard library."""
    folder = tmp_path_factory.mktemp("disk")
    tree, raw = folder / "tree", folder / "disk.raw"
    library = Path(shutil.__file__).parent
    for package in ("asyncio", "json", "re"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(library / package, tree / package, ignore=ignored)
    for module in library.glob("*.py"):
        shutil.copy(module, tree)
    qemu.mkfs_ext4(raw, DISK_SIZE, tree)
    qemu.e2fsck(raw)
    return raw


@pytest.fixture(scope="module", params=GEOMETRIES, ids=lambda param: f"{param[0]}/{param[1]}")
def converted(
    request: pytest.FixtureRequest, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The disk as QEMU makes a QED image of it."""
    cluster_size, table_size = request.param
    image = tmp_path_factory.mktemp("converted") / "disk.qed"
    options = f"cluster_size={cluster_size},table_size={table_size}"
    qemu.convert(disk, "raw", image, "qed", "-o", options)
    return image


def data_runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Where ``data`` is not zero: runs of whole blocks as (start, stop), 256 KiB at most."""
    zero, limit = bytes(BLOCK), 256 * KIB
    start = 0
    for pos in range(0, len(data) + BLOCK, BLOCK):
        ends = pos >= len(data) or data[pos : pos + BLOCK] == zero
        if (ends or pos - start == limit) and pos > start:
            yield start, pos
            start = pos
        if ends:
            start = pos + BLOCK


async def in_tasks(image: qedasync.Image, data: bytes, runs: Sequence[tuple[int, int]]) -> None:
    """Write these runs of ``data``, from several tasks that take turns."""

    async def work(worker: int) -> None:
        for start, stop in runs[worker::WORKERS]:
            await image.pwrite(data[start:stop], start)

    async with asyncio.TaskGroup() as group:
        for worker in range(WORKERS):
            group.create_task(work(worker))


async def read_all(image: qedasync.Image, step: int) -> bytearray:
    """The whole image, read by ``step`` bytes from several tasks."""
    data = bytearray(image.size)
    view = memoryview(data)

    async def work(worker: int) -> None:
        for pos in range(worker * step, len(data), WORKERS * step):
            await image.readinto(view[pos : pos + step], pos)

    async with asyncio.TaskGroup() as group:
        for worker in range(WORKERS):
            group.create_task(work(worker))
    return data


@pytest.mark.parametrize("step", [37 * KIB + 5, MIB])
async def test_read_image_converted_by_qemu_is_the_disk(
    disk: Path, converted: Path, step: int
) -> None:
    async with qedasync.open(converted) as image:
        assert image.size == DISK_SIZE
        assert await read_all(image, step) == disk.read_bytes()


async def test_read_image_written_through_qemu_nbd_is_the_disk(disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "nbd.qed"
    qemu.create(image, DISK_SIZE, cluster_size=4 * KIB, table_size=2)
    qemu.through_nbd(disk, image, tmp_path)
    async with qedasync.open(image) as mine:
        assert await read_all(mine, MIB) == disk.read_bytes()
        assert {run.kind async for run in mine.extents()} == {"data", "zero"}


@geometries
async def test_write_file_system_is_what_qemu_reads(
    disk: Path, tmp_path: Path, cluster_size: int, table_size: int
) -> None:
    mine, back, read = tmp_path / "mine.qed", tmp_path / "back.raw", tmp_path / "read.raw"
    data = disk.read_bytes()
    await qedasync.create(mine, len(data), cluster_size=cluster_size, table_size=table_size)
    async with qedasync.open(mine, "r+") as image:
        await in_tasks(image, data, list(data_runs(data)))
        read.write_bytes(await read_all(image, MIB))

    counts = qemu.check(mine)
    assert (counts["corruptions"], counts["check-errors"]) == (0, 0)
    assert counts["leaks"] == qemu.phantom_leaks(mine, cluster_size)
    qemu.compare(mine, disk)
    qemu.convert(mine, "qed", back, "raw")
    qemu.e2fsck(back)
    qemu.e2fsck(read)


async def test_write_file_system_with_table_size_1_reads_back(disk: Path, tmp_path: Path) -> None:
    """QEMU makes such an image and cannot open it, so nobody but us can look."""
    mine, read = tmp_path / "mine.qed", tmp_path / "read.raw"
    data = disk.read_bytes()
    qemu.create(mine, len(data), cluster_size=4096, table_size=1)
    async with qedasync.open(mine, "r+") as image:
        await in_tasks(image, data, list(data_runs(data)))
    async with qedasync.open(mine) as image:
        result = await image.check()
        assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0)
        read.write_bytes(await read_all(image, MIB))
    assert read.read_bytes() == data
    qemu.e2fsck(read)
