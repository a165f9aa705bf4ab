"""``qemu-img map`` and our extents describe the same image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qedasync
from tests.helpers import qemu

pytestmark = qemu.needs_qemu

KIB = 1024
CLUSTER = 64 * KIB

Run = tuple[int, int, int | None, bool, int | None]
"""Start and length in bytes, depth, whether zero, host offset."""


def joined(runs: list[Run]) -> list[Run]:
    """The same with equal neighbours joined, so that only the mapping counts."""
    result: list[Run] = []
    for start, length, depth, zero, offset in runs:
        if result:
            first, size, *same, at = result[-1]
            goes_on = at is None if offset is None else at is not None and at + size == offset
            if same == [depth, zero] and goes_on:
                result[-1] = (first, size + length, depth, zero, at)
                continue
        result.append((start, length, depth, zero, offset))
    return result


def qemu_runs(image: Path) -> list[Run]:
    """QEMU's view. The depth of what no layer has depends on the chain there; it is None here."""

    def run(entry: dict[str, Any]) -> Run:
        assert entry["data"] is not entry["zero"]
        depth = entry["depth"] if entry["present"] else None
        return entry["start"], entry["length"], depth, entry["zero"], entry.get("offset")

    return joined([run(entry) for entry in qemu.map_runs(image)])


async def our_runs(path: Path) -> list[Run]:
    """Ours, in the same words."""
    runs: list[Run] = []
    async with qedasync.open(path) as image:
        async for extent in image.extents():
            depth = None if extent.kind == "unallocated" else extent.depth
            runs.append((extent.start, extent.length, depth, extent.zero, extent.offset))
        assert sum(run[1] for run in runs) == image.size
    return joined(runs)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A raw file with holes, shorter than the images over it."""
    raw = tmp_path / "base.raw"
    with raw.open("wb") as file:
        for pos in (0, 3 * CLUSTER, 7 * CLUSTER + 16 * KIB):
            file.seek(pos)
            file.write(b"b" * CLUSTER)
        file.truncate(12 * CLUSTER)
    return raw


async def write_some(path: Path) -> None:
    """Data, zeroes and gaps, also far away."""
    async with qedasync.open(path, "r+") as image:
        await image.pwrite(b"d" * CLUSTER, 5 * CLUSTER)
        await image.pwrite(b"d" * CLUSTER, 4 * CLUSTER)  # out of order: two runs
        await image.write_zeroes(3 * CLUSTER, 6 * CLUSTER)
        await image.pwrite(b"d", 13 * CLUSTER)
        await image.pwrite(b"d" * 512, image.size - 512)
        await image.write_zeroes(CLUSTER, image.size // 2)


async def test_map_plain_image_agrees(tmp_path: Path) -> None:
    image = tmp_path / "plain.qed"
    await qedasync.create(image, 8 << 30, cluster_size=CLUSTER, table_size=1 << 1)
    await write_some(image)
    assert await our_runs(image) == qemu_runs(image)


async def test_map_image_written_by_qemu_agrees(tmp_path: Path) -> None:
    image = tmp_path / "plain.qed"
    qemu.create(image, 8 << 30, cluster_size=CLUSTER, table_size=2)
    qemu.io(image, "write 0 192k", "write -z 256k 128k", "write 4G 1M", "write 1G 1k")
    assert await our_runs(image) == qemu_runs(image)


async def test_map_chain_agrees(tmp_path: Path, base: Path) -> None:
    low, top = tmp_path / "low.qed", tmp_path / "top.qed"
    size = 20 * CLUSTER
    await qedasync.create(low, size, backing_file="base.raw", backing_format="raw")
    await write_some(low)
    await qedasync.create(top, size + CLUSTER, cluster_size=4096, backing_file="low.qed")
    qemu.io(top, f"write 0 {CLUSTER}", f"write -z {5 * CLUSTER} {CLUSTER}", "write 900k 1k")
    runs = await our_runs(top)
    assert runs == qemu_runs(top)
    assert {run[2] for run in runs} == {0, 1, 2, None}


async def test_map_empty_image_agrees(tmp_path: Path) -> None:
    image = tmp_path / "empty.qed"
    qemu.create(image, 1 << 40)
    assert await our_runs(image) == qemu_runs(image) == [(0, 1 << 40, None, True, None)]


async def test_zero_clusters_written_by_us_are_zero_for_qemu(tmp_path: Path, base: Path) -> None:
    image, raw = tmp_path / "zero.qed", tmp_path / "model.raw"
    await qedasync.create(image, 12 * CLUSTER, backing_file="base.raw", backing_format="raw")
    async with qedasync.open(image, "r+") as disk:
        await disk.write_zeroes(12 * CLUSTER, 0)
    assert qemu_runs(image) == [(0, 12 * CLUSTER, 0, True, None)]
    raw.write_bytes(bytes(12 * CLUSTER))
    qemu.compare(image, raw)


async def test_zero_clusters_written_by_qemu_are_zero_for_us(tmp_path: Path, base: Path) -> None:
    image = tmp_path / "zero.qed"
    qemu.create(image, 12 * CLUSTER, backing=("base.raw", "raw"))
    qemu.io(image, f"write -z 0 {12 * CLUSTER}")
    assert await our_runs(image) == [(0, 12 * CLUSTER, 0, True, None)]
    async with qedasync.open(image) as disk:
        assert not any(await disk.pread(disk.size, 0))
