"""convert: every way from one file to another, beside qemu-img, and what is left if it ends early.

The bytes are compared with those that went in; QEMU checks the images.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync import ExtentKind, ImageLocked, RequestError, StorageError
from qedasync.errors import BackingError
from qedasync.jobs.converting import new_file
from tests.helpers import qemu
from tests.jobs.disks import KIB, MIB, chain, content_of, names, patchwork, write_sparse

SIZES = [0, 1, 512, 4096, 300 * KIB, 3 * MIB + 77]

GEOMETRIES = [(4096, 2), (65536, 4), (1 << 20, 2), (4 << 20, 2)]
"""The last one has clusters that are too large for the fast way."""


def padded(content: bytes) -> bytes:
    """As a disk: whole sectors."""
    return content + bytes(-len(content) % 512)


# --------------------------------------------------------------- there and back


@pytest.mark.parametrize(("cluster_size", "table_size"), GEOMETRIES)
@pytest.mark.parametrize("size", SIZES)
async def test_convert_raw_to_qed_and_back_keeps_every_byte(
    tmp_path: Path, size: int, cluster_size: int, table_size: int
) -> None:
    content = patchwork(size, size)
    write_sparse(tmp_path / "a.raw", content)
    there = await qedasync.convert(
        tmp_path / "a.raw", tmp_path / "a.qed", cluster_size=cluster_size, table_size=table_size
    )
    assert await content_of(tmp_path / "a.qed") == padded(content)
    back = await qedasync.convert(tmp_path / "a.qed", tmp_path / "b.raw", format="raw")
    assert (tmp_path / "b.raw").read_bytes() == padded(content)
    for result in (there, back):
        assert result.copied + result.skipped == len(padded(content))
        assert result.unreadable == result.zeroed == 0
    async with qedasync.open(tmp_path / "a.qed") as image:
        assert image.cluster_size == cluster_size
        assert image.table_size == table_size
        assert (await image.check()).ok
    assert names(tmp_path) == ["a.qed", "a.raw", "b.raw"]


@qemu.needs_qemu
@pytest.mark.parametrize(("cluster_size", "table_size"), GEOMETRIES)
async def test_convert_is_what_qemu_reads_and_finds_sound(
    tmp_path: Path, cluster_size: int, table_size: int
) -> None:
    write_sparse(tmp_path / "a.raw", padded(patchwork(3 * MIB + 77, 5)))
    await qedasync.convert(
        tmp_path / "a.raw", tmp_path / "a.qed", cluster_size=cluster_size, table_size=table_size
    )
    qemu.compare(tmp_path / "a.qed", tmp_path / "a.raw")
    found = qemu.check(tmp_path / "a.qed")
    assert (found["corruptions"], found["leaks"], found["check-errors"]) == (0, 0, 0)
    qemu.convert(tmp_path / "a.qed", "qed", tmp_path / "theirs.raw", "raw")
    await qedasync.convert(tmp_path / "a.qed", tmp_path / "ours.raw", format="raw")
    assert (tmp_path / "ours.raw").read_bytes() == (tmp_path / "theirs.raw").read_bytes()


@qemu.needs_qemu
async def test_convert_of_an_image_that_qemu_wrote_keeps_every_byte(tmp_path: Path) -> None:
    content = patchwork(2 * MIB, 6)
    write_sparse(tmp_path / "a.raw", content)
    qemu.convert(tmp_path / "a.raw", "raw", tmp_path / "a.qed", "qed", "-o", "cluster_size=4096")
    await qedasync.convert(tmp_path / "a.qed", tmp_path / "b.raw", format="raw")
    assert (tmp_path / "b.raw").read_bytes() == content


@pytest.mark.parametrize("storage", ["posix", "aiofiles"])
async def test_convert_of_out_of_order_clusters_keeps_every_byte(
    tmp_path: Path, storage: str
) -> None:
    content = patchwork(MIB, 8)
    await qedasync.create(tmp_path / "a.qed", MIB, cluster_size=4096, table_size=2)
    async with qedasync.open(tmp_path / "a.qed", "r+") as image:
        for pos in reversed(range(0, MIB, 4096)):
            await image.pwrite(content[pos : pos + 4096], pos)
    async with qedasync.open(tmp_path / "a.qed", storage=storage) as image:
        await qedasync.convert(image, tmp_path / "b.qed", cluster_size=8192)
    assert await content_of(tmp_path / "b.qed") == content


@pytest.mark.parametrize("tasks", [1, 2, 16])
async def test_convert_in_order_lays_clusters_as_the_guest_has_them(
    tmp_path: Path, tasks: int
) -> None:
    (tmp_path / "a.raw").write_bytes(os.urandom(5 * MIB))
    await qedasync.convert(tmp_path / "a.raw", tmp_path / "a.qed", tasks=tasks)
    async with qedasync.open(tmp_path / "a.qed") as image:
        runs = [run async for run in image.extents()]
    assert [(run.start, run.length, run.kind) for run in runs] == [(0, 5 * MIB, ExtentKind.DATA)]


async def test_convert_out_of_order_keeps_every_byte(tmp_path: Path) -> None:
    content = patchwork(5 * MIB, 4)
    (tmp_path / "a.raw").write_bytes(content)
    await qedasync.convert(tmp_path / "a.raw", tmp_path / "a.qed", in_order=False, tasks=4)
    assert await content_of(tmp_path / "a.qed") == content


# ---------------------------------------------------------------------- zeroes


async def test_convert_leaves_zeroes_out_whether_hole_or_data(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(2 * MIB) + b"x" * 65536 + bytes(6 * MIB - 65536))
    result = await qedasync.convert(tmp_path / "a.raw", tmp_path / "a.qed")
    assert (result.copied, result.skipped) == (65536, 8 * MIB - 65536)
    async with qedasync.open(tmp_path / "a.qed") as image:
        runs = [run async for run in image.extents() if run.kind is ExtentKind.DATA]
    assert [(run.start, run.length) for run in runs] == [(2 * MIB, 65536)]
    await qedasync.convert(tmp_path / "a.qed", tmp_path / "b.raw", format="raw")
    assert os.stat(tmp_path / "b.raw").st_blocks * 512 < MIB


async def test_convert_to_raw_leaves_pages_of_zeroes_out(tmp_path: Path) -> None:
    # All of it is data to the host, so that room for it is reserved; that must be given back.
    content = (os.urandom(4096) + bytes(4096)) * 512
    (tmp_path / "a.raw").write_bytes(content)
    result = await qedasync.convert(tmp_path / "a.raw", tmp_path / "b.raw", format="raw")
    assert (result.copied, result.skipped) == (2 * MIB, 2 * MIB)
    assert (tmp_path / "b.raw").read_bytes() == content
    taken, all_of_it = (os.stat(tmp_path / name).st_blocks for name in ("b.raw", "a.raw"))
    assert taken <= all_of_it * 5 // 8


@pytest.mark.parametrize("min_zero", [4096, 32 * KIB, MIB])
async def test_convert_writes_zeroes_shorter_than_min_zero(tmp_path: Path, min_zero: int) -> None:
    content = b"x" * 4096 + bytes(20 * KIB) + b"y" * 4096 + bytes(500 * KIB) + b"z" * 4096
    (tmp_path / "a.raw").write_bytes(content)
    result = await qedasync.convert(
        tmp_path / "a.raw", tmp_path / "b.raw", format="raw", min_zero=min_zero
    )
    left_out = [length for length in (20 * KIB, 500 * KIB) if length >= min_zero]
    assert result.skipped == sum(left_out)
    assert (tmp_path / "b.raw").read_bytes() == content


@pytest.mark.parametrize("format", ["qed", "raw"])
async def test_convert_min_zero_0_allocates_everything(tmp_path: Path, format: Any) -> None:
    with (tmp_path / "a.raw").open("wb") as file:
        file.truncate(2 * MIB)
    result = await qedasync.convert(tmp_path / "a.raw", tmp_path / "b", format=format, min_zero=0)
    assert (result.copied, result.skipped) == (2 * MIB, 0)
    assert os.stat(tmp_path / "b").st_blocks * 512 >= 2 * MIB


# ---------------------------------------------------------------------- chains


@qemu.needs_qemu
@pytest.mark.parametrize("cluster_size", [4096, 65536])
async def test_convert_flattens_a_chain_as_qemu_reads_it(tmp_path: Path, cluster_size: int) -> None:
    top = await chain(tmp_path)
    await qedasync.convert(top, tmp_path / "flat.raw", format="raw")
    await qedasync.convert(top, tmp_path / "flat.qed", cluster_size=cluster_size)
    qemu.convert(top, "qed", tmp_path / "theirs.raw", "raw")
    assert (tmp_path / "flat.raw").read_bytes() == (tmp_path / "theirs.raw").read_bytes()
    qemu.compare(tmp_path / "flat.qed", tmp_path / "flat.raw")
    assert (await qedasync.probe(tmp_path / "flat.qed")).backing_file is None


@pytest.mark.parametrize("cluster_size", [4096, 65536, 1 << 20])
async def test_convert_over_a_backing_file_copies_what_the_top_has(
    tmp_path: Path, cluster_size: int
) -> None:
    top = await chain(tmp_path)
    await qedasync.convert(
        top,
        tmp_path / "copy.qed",
        backing_file="1.qed",
        backing_format="qed",
        cluster_size=cluster_size,
        table_size=2,
    )
    assert await content_of(tmp_path / "copy.qed") == await content_of(top)
    async with qedasync.open(tmp_path / "copy.qed") as image:
        assert image.backing_file == "1.qed"
        assert (await image.check()).ok
        if cluster_size == 4096:
            own = [run.kind for run in await image.block_status(0, image.size) if not run.depth]
            assert ExtentKind.ZERO in own
            runs = await image.block_status(0, image.size)
            assert any(run.kind is ExtentKind.BACKING for run in runs)


async def test_convert_over_a_backing_file_to_raw_is_refused(tmp_path: Path) -> None:
    top = await chain(tmp_path)
    before = names(tmp_path)
    with pytest.raises(RequestError, match="no backing file"):
        await qedasync.convert(top, tmp_path / "b", format="raw", backing_file="1.qed")
    assert names(tmp_path) == before


async def test_convert_of_a_chain_that_the_policy_refuses_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "base").write_bytes(bytes(512))
    await qedasync.create(tmp_path / "a.qed", backing_file="else/base", backing_format="raw")
    with pytest.raises(BackingError):
        await qedasync.convert(tmp_path / "a.qed", tmp_path / "b.qed")
    await qedasync.convert(tmp_path / "a.qed", tmp_path / "b.qed", backing="any")
    assert names(tmp_path) == ["a.qed", "b.qed", "else"]


# ----------------------------------------------------------------- into a disk


@pytest.mark.parametrize("format", ["qed", "raw"])
async def test_convert_into_an_open_disk_overwrites_what_it_had(
    tmp_path: Path, format: Any
) -> None:
    content = patchwork(MIB, 3)
    write_sparse(tmp_path / "a.raw", content)
    (tmp_path / "old.raw").write_bytes(os.urandom(MIB + 512))
    await qedasync.convert(tmp_path / "old.raw", tmp_path / "t", format=format)
    opener = qedasync.open if format == "qed" else qedasync.open_raw
    async with opener(tmp_path / "t", "r+") as target:
        rest = bytes(await target.pread(512, MIB))
        result = await qedasync.convert(tmp_path / "a.raw", target)
        assert not target.closed
        assert await target.pread(MIB + 512, 0) == content + rest
    assert result.zeroed > 0
    assert result.copied + result.zeroed == MIB


async def test_convert_into_a_smaller_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(1024))
    (tmp_path / "b.raw").write_bytes(b"x" * 512)
    async with qedasync.open_raw(tmp_path / "b.raw", "r+") as target:
        with pytest.raises(RequestError, match="too small"):
            await qedasync.convert(tmp_path / "a.raw", target)
    assert (tmp_path / "b.raw").read_bytes() == b"x" * 512


async def test_convert_into_a_fresh_image_beside_other_users_keeps_every_byte(
    tmp_path: Path,
) -> None:
    content = patchwork(2 * MIB, 30)
    (tmp_path / "a.raw").write_bytes(content)
    await qedasync.create(tmp_path / "b.qed", 4 * MIB)
    async with qedasync.open(tmp_path / "b.qed", "r+") as target:
        copying = asyncio.create_task(
            qedasync.convert(tmp_path / "a.raw", target, target_is_zero=True)
        )
        await target.pwrite(b"hello", 3 * MIB)
        await copying
        assert await target.pread(2 * MIB, 0) == content
        assert await target.pread(5, 3 * MIB) == b"hello"
        assert (await target.check()).ok


# ----------------------------------------------------------- the file's name


async def test_convert_replaces_a_file_and_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"new" * 512)
    (tmp_path / "b.raw").write_bytes(b"old")
    (tmp_path / "b.raw").chmod(0o640)
    await qedasync.convert(tmp_path / "a.raw", tmp_path / "b.raw", format="raw")
    assert (tmp_path / "b.raw").read_bytes() == b"new" * 512
    assert stat.S_IMODE((tmp_path / "b.raw").stat().st_mode) == 0o640


async def test_convert_through_a_link_replaces_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"new" * 512)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("sub/real")
    await qedasync.convert(tmp_path / "a.raw", tmp_path / "link", format="raw")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "sub" / "real").read_bytes() == b"new" * 512


async def test_convert_over_an_image_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(512))
    await qedasync.create(tmp_path / "b.qed", "1M")
    async with qedasync.open(tmp_path / "b.qed", "r+"):
        with pytest.raises(ImageLocked):
            await qedasync.convert(tmp_path / "a.raw", tmp_path / "b.qed")
    assert names(tmp_path) == ["a.raw", "b.qed"]


async def test_convert_onto_its_own_source_is_refused(tmp_path: Path) -> None:
    await qedasync.create(tmp_path / "b.qed", "1M")
    with pytest.raises(ImageLocked):
        await qedasync.convert(tmp_path / "b.qed", tmp_path / "b.qed")
    assert names(tmp_path) == ["b.qed"]


@pytest.mark.parametrize(
    "wish",
    [
        {"format": "qcow2"},
        {"source_format": "vdi"},
        {"cluster_size": 5000},
        {"tasks": 0},
        {"min_zero": 100},
        {"backing_file": "nowhere"},
    ],
)
async def test_convert_wrong_argument_is_refused_and_leaves_nothing(
    tmp_path: Path, wish: dict[str, Any]
) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(512))
    with pytest.raises((RequestError, BackingError)):
        await qedasync.convert(tmp_path / "a.raw", tmp_path / "b.qed", **wish)
    assert names(tmp_path) == ["a.raw"]


async def test_convert_into_a_missing_folder_is_an_error_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(512))
    with pytest.raises(StorageError):
        await qedasync.convert(tmp_path / "a.raw", tmp_path / "no" / "b.qed")
    with pytest.raises(StorageError):
        await qedasync.convert(tmp_path / "a.raw", tmp_path)


async def test_new_file_body_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")

    async def fill() -> None:
        async with new_file(tmp_path / "b", 1000) as disk:
            assert disk.size == 1024
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fill()
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"old"


# ------------------------------------------------- progress, and an early end


@pytest.mark.parametrize("format", ["qed", "raw"])
async def test_convert_progress_goes_up_to_the_size(tmp_path: Path, format: Any) -> None:
    write_sparse(tmp_path / "a.raw", patchwork(5 * MIB, 4))
    told: list[tuple[int, int]] = []
    await qedasync.convert(
        tmp_path / "a.raw",
        tmp_path / "b",
        format=format,
        progress=lambda done, of: told.append((done, of)),
    )
    assert told == sorted(told)
    assert told[0] == (0, 5 * MIB)
    assert told[-1] == (5 * MIB, 5 * MIB)
    assert {of for _, of in told} == {5 * MIB}


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("format", ["qed", "raw"])
async def test_convert_progress_that_raises_ends_it_and_leaves_nothing(
    tmp_path: Path, format: Any, direct: bool
) -> None:
    write_sparse(tmp_path / "a.raw", patchwork(5 * MIB, 4))
    storage = "posix" if direct else "aiofiles"

    def refuse(done: int, of: int) -> None:
        if done:
            raise ZeroDivisionError

    async with qedasync.open_raw(tmp_path / "a.raw", storage=storage) as source:
        with pytest.raises((ZeroDivisionError, ExceptionGroup)):
            await qedasync.convert(source, tmp_path / "b", format=format, progress=refuse)
    assert names(tmp_path) == ["a.raw"]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("format", ["qed", "raw"])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 30, 60, 100])
async def test_convert_cancelled_leaves_nothing_that_looks_whole(
    tmp_path: Path, turns: int, format: Any, direct: bool
) -> None:
    content = patchwork(3 * MIB, 4)
    write_sparse(tmp_path / "a.raw", content)
    (tmp_path / "b").write_bytes(b"old")
    storage = "posix" if direct else "aiofiles"
    async with qedasync.open_raw(tmp_path / "a.raw", storage=storage) as source:
        task = asyncio.create_task(qedasync.convert(source, tmp_path / "b", format=format))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.done()
    assert names(tmp_path) == ["a.raw", "b"]
    if task.cancelled() and (tmp_path / "b").read_bytes() == b"old":
        return
    opener = qedasync.open if format == "qed" else qedasync.open_raw
    async with opener(tmp_path / "b") as image:
        assert await image.pread(3 * MIB, 0) == content
