"""Stacks of nodes: what is read and written through them, and what they leave behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync.cli.nodes import Access, Node, open_node
from qedasync.cli.nodes.copy_on_read import CopyOnRead
from qedasync.cli.nodes.disk_filter import DiskFilter
from qedasync.cli.nodes.zero_detector import ZeroDetector
from qedasync.cli.options import ToolError
from tests.helpers import qemu

CLUSTER = 65536
WRITABLE = Access(writable=True)


async def opened(spec: dict[str, Any] | str, access: Access = WRITABLE) -> Node:
    name = spec if isinstance(spec, str) else f"json:{json.dumps(spec)}"
    return await open_node(name, None, access)


def file(path: Path) -> dict[str, Any]:
    return {"driver": "file", "filename": str(path)}


def blkdebug(path: Path, **options: Any) -> dict[str, Any]:
    return {"driver": "blkdebug", "image": file(path), **options}


@pytest.fixture
async def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.qed"
    await qedasync.create(path, 8 << 20)
    return path


def stacks(path: Path) -> dict[str, dict[str, Any]]:
    return {
        "plain": {"driver": "qed", "file": file(path)},
        "found": {"file": file(path)},
        "raw": {"driver": "qed", "file": {"driver": "raw", "file": file(path)}},
        "blkdebug": {"driver": "qed", "file": blkdebug(path)},
        "twice": {"driver": "qed", "file": {"driver": "blkdebug", "image": blkdebug(path)}},
        "aligned": {"driver": "qed", "file": blkdebug(path, align=4096)},
        "direct": {"driver": "qed", "file": file(path), "cache": {"direct": True}},
    }


@pytest.mark.parametrize("which", stacks(Path()))
@pytest.mark.parametrize("cache", ["writeback", "writethrough", "unsafe"])
async def test_image_through_any_stack_is_the_same(which: str, cache: str, image: Path) -> None:
    node = await opened(stacks(image)[which], Access(writable=True, cache=cache))
    assert (node.format, node.file, node.cluster_size) == ("qed", str(image), CLUSTER)
    await node.disk.pwrite(b"x" * 5000, CLUSTER - 1000)
    await node.disk.write_zeroes(CLUSTER, 4 * CLUSTER)
    await node.disk.flush()
    await node.close()
    async with qedasync.open(image) as again:
        assert await again.pread(7000, CLUSTER - 2000) == bytes(1000) + b"x" * 5000 + bytes(1000)
        result = await again.check()
    assert (result.corruptions, result.leaks) == (0, 0)


@qemu.needs_qemu
async def test_image_in_an_image_is_read_by_qemu(image: Path, tmp_path: Path) -> None:
    inner = {"driver": "qed", "file": file(image)}
    small = tmp_path / "small.qed"
    await qedasync.create(small, 4 << 20)
    node = await opened({"driver": "raw", "file": inner})
    await node.disk.pwrite(small.read_bytes(), 0)
    await node.close()
    outer = {"driver": "qed", "file": inner}
    node = await opened(outer)
    assert node.disk.size == 4 << 20
    await node.disk.pwrite(b"y" * 100_000, 1 << 20)
    await node.close()
    said = qemu.io(f"json:{json.dumps(outer)}", "read -P 0x79 1M 100000", options=())
    assert "failed" not in said
    assert qemu.check(image)["corruptions"] == 0


async def test_raw_with_offset_and_size_is_that_part(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(b"".join(bytes([at]) * 512 for at in range(16)))
    node = await opened({"driver": "raw", "file": file(path), "offset": 1024, "size": 2048})
    assert node.disk.size == 2048
    assert [(await node.disk.pread(1, at))[0] for at in range(0, 2048, 512)] == [2, 3, 4, 5]
    await node.disk.pwrite(b"\xff" * 512, 512)
    await node.disk.write_zeroes(512, 1024)
    runs = [run async for run in node.disk.extents()]
    assert (runs[0].offset, runs[-1].end) == (1024, 2048)
    with pytest.raises(qedasync.QEDError):
        await node.disk.truncate(4096)
    await node.close()
    assert [path.read_bytes()[at * 512] for at in range(2, 6)] == [2, 0xFF, 0, 5]


async def test_raw_with_an_offset_alone_goes_to_the_end_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(b"a" * 1000 + b"b" * 100)
    node = await opened({"driver": "raw", "file": file(path), "offset": 1000})
    assert node.disk.size == 512
    assert await node.disk.pread(512, 0) == b"b" * 100 + bytes(412)
    await node.disk.truncate(1024)
    assert path.stat().st_size == 2024
    await node.close()


async def test_image_within_a_part_of_a_file_opens(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096) + image.read_bytes())
    part = {"driver": "raw", "file": file(path), "offset": 4096}
    node = await opened({"driver": "qed", "file": part})
    await node.disk.pwrite(b"z", 5)
    await node.close()
    assert path.read_bytes()[:4096] == bytes(4096)
    node = await opened({"driver": "qed", "file": part}, Access())
    assert await node.disk.pread(1, 5) == b"z"
    await node.close()


async def test_backing_of_the_options_takes_the_place_of_the_image_s(
    image: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"q" * CLUSTER)
    for backing in ({"driver": "raw", "file": file(base)}, {"file": file(base)}):
        node = await opened({"driver": "qed", "file": file(image), "backing": backing}, Access())
        assert await node.disk.pread(1, 0) == b"q"
        await node.close()


@pytest.mark.parametrize(
    "options",
    [{"read-only": True}, {"file.read-only": "on"}, {"force-share": True}],
    ids=lambda options: next(iter(options)),
)
async def test_node_that_may_not_be_written_is_not_opened_for_it(
    options: dict[str, Any], image: Path
) -> None:
    spec = {"driver": "qed", "file.filename": str(image), **options}
    with pytest.raises(ToolError, match="read-only"):
        await opened(spec)
    node = await opened(spec, Access())
    await node.close()


@pytest.mark.parametrize("locking", ["auto", "off"])
async def test_locking_off_takes_no_locks(locking: str, image: Path) -> None:
    spec = {"driver": "qed", "file": {**file(image), "locking": locking}}
    async with qedasync.open(image, "r+"):
        if locking == "off":
            node = await opened(spec)
            await node.close()
        else:
            with pytest.raises(ToolError, match='Failed to get "write" lock'):
                await opened(spec)


async def test_force_share_reads_what_another_writes(image: Path) -> None:
    async with qedasync.open(image, "r+"):
        with pytest.raises(ToolError, match='Failed to get shared "write" lock'):
            await opened(str(image), Access())
        node = await opened(str(image), Access(force_share=True))
        await node.close()


async def test_failed_opening_leaves_nothing_open(image: Path) -> None:
    for spec in (
        {"driver": "qed", "file": file(image), "nope": 1},
        {"driver": "qed", "file": {"driver": "raw", "file": file(image), "offset": 512}},
        {"driver": "raw", "file": {"driver": "qed", "file": file(image)}, "size": 1},
        {"driver": "qed", "file": blkdebug(image, align=3)},
        {"driver": "qed", "file": file(image), "backing": {"file": file(Path("nope"))}},
    ):
        with pytest.raises(ToolError):
            await opened(spec)
    async with qedasync.open(image, "r+"):
        pass


async def test_stack_without_end_is_refused(image: Path) -> None:
    spec = file(image)
    for _ in range(100):
        spec = {"driver": "raw", "file": spec}
    with pytest.raises(ToolError, match="too deep"):
        await opened(spec)


# -------------------------------------------------------------------- filters


@pytest.mark.parametrize("word", ["on", "off"])
async def test_detect_zeroes_makes_zero_clusters_of_written_zeroes(word: str, image: Path) -> None:
    node = await opened({"driver": "qed", "file": file(image), "detect-zeroes": word})
    await node.disk.pwrite(bytes(CLUSTER), 0)
    await node.disk.pwritev([bytes(CLUSTER - 1), b"x"], CLUSTER)
    runs = await node.disk.block_status(0, 2 * CLUSTER)
    zero = qedasync.ExtentKind.ZERO if word == "on" else qedasync.ExtentKind.DATA
    assert [runs[0].kind, runs[-1].kind] == [zero, qedasync.ExtentKind.DATA]
    await node.close()


async def test_copy_on_read_keeps_what_was_read(image: Path, tmp_path: Path) -> None:
    async with qedasync.open(image, "r+") as base:
        await base.pwrite(b"b" * CLUSTER, CLUSTER)
    over = tmp_path / "over.qed"
    await qedasync.create(over, 8 << 20, backing_file="a.qed")
    node = await opened(str(over), Access(writable=True, copy_on_read=True))
    assert isinstance(node.disk, CopyOnRead)
    assert await node.disk.pread(4, CLUSTER + 100) == b"bbbb"
    buffer = bytearray(10)
    await node.disk.readinto(buffer, 3 * CLUSTER)
    kinds = {at: (await node.disk.block_status(at * CLUSTER, 1))[0].kind for at in range(5)}
    await node.close()
    own = {at for at, kind in kinds.items() if kind in ("data", "zero")}
    assert own == {1, 3}
    assert kinds[1] == "data"


async def test_copy_on_read_never_writes_over_what_a_guest_writes_meanwhile(
    image: Path,
) -> None:
    base = await qedasync.open_raw("base", storage=qedasync.MemoryStorage(b"b" * 4 * CLUSTER))
    slow = Slow(base)
    disk = CopyOnRead(await qedasync.open(image, "r+", backing=slow))
    slow.gate.clear()
    reading = asyncio.create_task(disk.pread(2 * CLUSTER, CLUSTER))
    await slow.reached.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(disk.pwrite(b"guest" * 2, CLUSTER))
        slow.gate.set()
    await reading
    assert await disk.pread(12, CLUSTER) == b"guestguestbb"
    assert {run.kind for run in await disk.block_status(CLUSTER, 2 * CLUSTER)} == {"data"}
    await disk.close()


class Slow(DiskFilter):
    """Reads wait for a gate."""

    def __init__(self, disk: Any) -> None:
        super().__init__(disk)
        self.reached, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int:
        self.reached.set()
        await self.gate.wait()
        return await super().preadv(buffers, offset)


async def test_filters_are_disks_without_ways_around_them(image: Path) -> None:
    async with qedasync.open(image, "r+") as inner:
        for kind in (DiskFilter, CopyOnRead, ZeroDetector):
            disk = kind(inner)
            assert isinstance(disk, qedasync.Disk)
            assert disk.cluster_size == CLUSTER
            assert (disk.path, disk.readonly, disk.closed) == (str(image), False, False)
            for way in ("try_pread", "try_pwrite", "pwrite_soon", "try_locate", "lent", "bulk"):
                assert not hasattr(disk, way)
            await disk.pwrite(b"abc", 5)
            assert await disk.pread(3, 5) == b"abc"
            await disk.flush()
            await disk.truncate(inner.size)
