"""Jobs on files: other openers, locks, longer chains, and QEMU's tools beside us."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from errno import EINVAL, ELOOP, ENOTSUP, ESTALE
from pathlib import Path

import pytest

import qedasync
from qedasync.engine.extents import ExtentKind
from qedasync.errors import (
    BackingError,
    ImageClosed,
    ImageLocked,
    ImageNotFound,
    QEDError,
    ReadOnly,
    RequestError,
)
from qedasync.image import open_image
from qedasync.raw import open_raw
from qedasync.storage.memory import MemoryStorage
from tests.chain.stack import CLUSTER, image_file
from tests.helpers import qemu

KIB = 1024
SIZE = 1024 * KIB


async def make_chain(folder: Path, *, cluster_size: int = 64 * KIB) -> bytes:
    """``base.raw`` under ``mid.qed`` under ``top.qed``; answers what the top one's guest reads."""
    expected = bytearray(b"b" * (SIZE - 100 * KIB))
    (folder / "base.raw").write_bytes(expected)
    expected = bytearray(expected.ljust(SIZE, b"\0"))
    below = "base.raw"
    for number, name in enumerate(("mid.qed", "top.qed")):
        await qedasync.create(
            folder / name,
            SIZE,
            cluster_size=cluster_size,
            backing_file=below,
            backing_format="raw" if number == 0 else None,
        )
        async with qedasync.open(folder / name, "r+") as disk:
            data = name[:1].encode() * 70 * KIB
            for pos in (number * 100 * KIB, SIZE - 80 * KIB + number * 10 * KIB):
                await disk.pwrite(data[: SIZE - pos], pos)
                expected[pos : pos + len(data)] = data[: SIZE - pos]
            await disk.write_zeroes(64 * KIB, (4 + number) * 64 * KIB)
            expected[(4 + number) * 64 * KIB : (5 + number) * 64 * KIB] = bytes(64 * KIB)
        below = name
    return bytes(expected)


async def read(path: Path) -> bytes:
    async with qedasync.open(path) as disk:
        return bytes(await disk.pread(disk.size, 0))


# ------------------------------------------------------------------------- commit


async def test_commit_opens_its_backing_image_for_a_while_and_gives_it_back(tmp_path: Path) -> None:
    expected = await make_chain(tmp_path)
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        await disk.commit()
        assert await disk.pread(SIZE, 0) == expected
        assert await read(tmp_path / "mid.qed") == expected, "nobody else can read it"
        with pytest.raises(ImageLocked):
            await qedasync.open(tmp_path / "mid.qed", "r+")
        await disk.pwrite(b"new", 0)
        await disk.commit()
    expected = b"new" + expected[3:]
    assert await read(tmp_path / "top.qed") == expected
    assert await read(tmp_path / "mid.qed") == expected
    async with qedasync.open(tmp_path / "mid.qed") as mid:
        assert not mid.features & 2
        assert (await mid.check()).corruptions == 0


async def test_commit_down_to_a_raw_file_grows_it(tmp_path: Path) -> None:
    expected = await make_chain(tmp_path)
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        await disk.commit()
    async with qedasync.open(tmp_path / "mid.qed", "r+") as disk:
        await disk.commit()
    assert (tmp_path / "base.raw").read_bytes() == expected
    for name in ("mid.qed", "top.qed"):
        assert (tmp_path / name).stat().st_size == 5 * 64 * KIB
        assert await read(tmp_path / name) == expected


@pytest.mark.parametrize("other", ["writer", "reader"])
async def test_commit_while_another_has_the_backing_file_is_refused_and_changes_nothing(
    tmp_path: Path, other: str
) -> None:
    expected = await make_chain(tmp_path)
    before = (tmp_path / "mid.qed").read_bytes()
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        async with qedasync.open(tmp_path / "mid.qed"):
            with pytest.raises(ImageLocked):
                await disk.commit()
            assert await disk.pread(SIZE, 0) == expected
        assert (tmp_path / "mid.qed").read_bytes() == before
        if other == "writer":
            with pytest.raises(ImageLocked):  # the old locks are back
                await qedasync.open(tmp_path / "mid.qed", "r+")
        await disk.commit()
        assert await disk.pread(SIZE, 0) == expected


async def test_commit_into_a_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    expected = await make_chain(tmp_path)
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        data = (tmp_path / "mid.qed").read_bytes()
        (tmp_path / "mid.qed").unlink()
        with pytest.raises(ImageNotFound):
            await disk.commit()
        (tmp_path / "mid.qed").write_bytes(data)
        with pytest.raises(BackingError) as caught:
            await disk.commit()
        assert caught.value.errno == ESTALE
        assert await disk.pread(SIZE, 0) == expected


async def test_commit_into_a_dirty_image_repairs_it_first(tmp_path: Path) -> None:
    expected = await make_chain(tmp_path)
    with (tmp_path / "mid.qed").open("r+b") as file:
        file.seek(16)
        bits = file.read(1)[0]
        file.seek(16)
        file.write(bytes([bits | 2]))
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        await disk.commit()
    async with qedasync.open(tmp_path / "mid.qed") as mid:
        assert not mid.features & 2
        assert await mid.pread(SIZE, 0) == expected


async def test_commit_without_a_backing_file_is_refused(tmp_path: Path) -> None:
    await qedasync.create(tmp_path / "d.qed", SIZE)
    async with qedasync.open(tmp_path / "d.qed", "r+") as disk:
        with pytest.raises(RequestError) as caught:
            await disk.commit()
        assert caught.value.errno == ENOTSUP


async def test_commit_of_a_read_only_image_or_into_a_read_only_disk_is_refused(
    tmp_path: Path,
) -> None:
    await make_chain(tmp_path)
    async with qedasync.open(tmp_path / "top.qed") as disk:
        with pytest.raises(ReadOnly):
            await disk.commit()
    mid = await qedasync.open(tmp_path / "mid.qed")
    async with qedasync.open(tmp_path / "top.qed", "r+", backing=mid) as disk:
        with pytest.raises(ReadOnly):
            await disk.commit()


async def test_commit_interrupted_by_close_releases_every_file(tmp_path: Path) -> None:
    expected = await make_chain(tmp_path)
    for turns in range(0, 200, 20):
        disk = await qedasync.open(tmp_path / "top.qed", "r+")
        await disk.pwrite(expected[:CLUSTER], 0)
        job = asyncio.create_task(disk.commit())
        for _ in range(turns):
            await asyncio.sleep(0)
        await disk.close()
        await asyncio.wait([job])
        error = job.exception()
        assert error is None or isinstance(error, ImageClosed), repr(error)
        assert await read(tmp_path / "top.qed") == expected
        async with qedasync.open(tmp_path / "mid.qed", "r+"):
            pass


# ------------------------------------------------------------------ longer chains


async def test_commit_to_a_deeper_file_copies_all_above_it_and_keeps_the_image(
    tmp_path: Path,
) -> None:
    expected = await make_chain(tmp_path)
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        await disk.commit(base=tmp_path / "base.raw")
        kinds = {run.kind for run in await disk.block_status(0, SIZE)}
        assert ExtentKind.DATA in kinds, "the image was emptied, but the one below is not right"
        assert await disk.pread(SIZE, 0) == expected
    assert (tmp_path / "base.raw").read_bytes() == expected
    assert await read(tmp_path / "top.qed") == expected


async def test_commit_to_a_deeper_open_disk(tmp_path: Path) -> None:
    expected = await make_chain(tmp_path)
    base = await open_raw(tmp_path / "base.raw", "r+")
    mid = await qedasync.open(tmp_path / "mid.qed", backing=base)
    async with qedasync.open(tmp_path / "top.qed", "r+", backing=mid) as disk:
        await disk.commit(base=base)
        assert await disk.pread(SIZE, 0) == expected
    assert (tmp_path / "base.raw").read_bytes() == expected


async def test_commit_past_a_shorter_image_hides_what_that_hid(tmp_path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"b" * SIZE)
    await qedasync.create(
        tmp_path / "mid.qed", 100 * KIB, backing_file="base.raw", backing_format="raw"
    )
    await qedasync.create(tmp_path / "top.qed", 700 * KIB, backing_file="mid.qed")
    expected = await read(tmp_path / "top.qed")
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        await disk.commit(base=tmp_path / "base.raw")
    assert (tmp_path / "base.raw").read_bytes()[: 700 * KIB] == expected
    assert (tmp_path / "base.raw").read_bytes()[700 * KIB :] == b"b" * (SIZE - 700 * KIB)


async def test_commit_to_a_file_that_is_not_in_the_chain_is_refused(tmp_path: Path) -> None:
    await make_chain(tmp_path)
    (tmp_path / "other").write_bytes(b"")
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        with pytest.raises(RequestError):
            await disk.commit(base=tmp_path / "other")


# ------------------------------------------------------------------------- rebase


async def test_rebase_to_the_file_two_below_brings_over_what_was_between(tmp_path: Path) -> None:
    expected = await make_chain(tmp_path)
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        await disk.rebase("base.raw", format="raw")
        assert await disk.pread(SIZE, 0) == expected
        async with qedasync.open(tmp_path / "mid.qed", "r+"):
            pass  # nobody holds it any more
    (tmp_path / "mid.qed").unlink()
    assert await read(tmp_path / "top.qed") == expected


@pytest.mark.parametrize(
    ("new", "check"),
    [
        ("missing.raw", lambda e: isinstance(e, BackingError)),
        ("top.qed", lambda e: e.errno == ELOOP),
        ("above.qed", lambda e: e.errno == ELOOP),
        ("nbd://host/", lambda e: isinstance(e, BackingError)),
    ],
)
async def test_rebase_to_what_cannot_be_a_backing_file_changes_nothing(
    tmp_path: Path, new: str, check: Callable[[QEDError], bool]
) -> None:
    expected = await make_chain(tmp_path)
    await qedasync.create(tmp_path / "above.qed", SIZE, backing_file="top.qed")
    before = (tmp_path / "top.qed").read_bytes()
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        with pytest.raises(QEDError) as caught:
            await disk.rebase(new)
        assert check(caught.value), repr(caught.value)
        assert await disk.pread(SIZE, 0) == expected
    assert (tmp_path / "top.qed").read_bytes() == before


async def test_rebase_of_an_image_without_its_backing_file_is_refused(tmp_path: Path) -> None:
    await make_chain(tmp_path)
    async with qedasync.open(tmp_path / "top.qed", "r+", backing=False) as disk:
        with pytest.raises(RequestError) as caught:
            await disk.stream()
        assert caught.value.errno == EINVAL


async def test_rebase_that_is_refused_closes_the_disk_it_was_given() -> None:
    new = await open_raw("new", storage=MemoryStorage(b"x" * 512))
    storage = MemoryStorage(image_file(SIZE, CLUSTER))
    async with open_image("d", "r+", storage=storage) as disk:
        with pytest.raises(RequestError):
            await disk.rebase("n" * 5000, backing=new)
        assert new.closed
        with pytest.raises(RequestError):
            await disk.rebase(None, backing=await open_raw("n", storage=MemoryStorage()))
        assert disk.backing_file is None


async def test_stream_of_an_image_of_its_own_does_nothing() -> None:
    content = image_file(SIZE, CLUSTER)
    before = bytes(content)
    async with open_image("d", "r+", storage=MemoryStorage(content)) as disk:
        await disk.stream()
    assert bytes(content) == before


async def test_jobs_on_one_image_take_turns(tmp_path: Path) -> None:
    expected = await make_chain(tmp_path)
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        async with asyncio.TaskGroup() as group:
            group.create_task(disk.commit())
            group.create_task(disk.rebase("base.raw", format="raw"))
            group.create_task(disk.change_backing_file("base.raw", "raw"))
            group.create_task(disk.check(repair=True))
            group.create_task(disk.stream())
        assert await disk.pread(SIZE, 0) == expected
    assert await read(tmp_path / "top.qed") == expected


# ------------------------------------------------------------------ QEMU beside us


@qemu.needs_qemu
@pytest.mark.parametrize("new", ["base.raw", "other.qed", "short.raw", None])
async def test_rebase_gives_what_qemu_img_rebase_gives(tmp_path: Path, new: str | None) -> None:
    expected = await make_chain(tmp_path)
    (tmp_path / "want.raw").write_bytes(expected)
    (tmp_path / "short.raw").write_bytes(b"t" * 300 * KIB)
    qemu.create(tmp_path / "other.qed", 2 * SIZE)
    qemu.io(tmp_path / "other.qed", "write -P 98 0 512k", "write -P 9 768k 600k")
    theirs = tmp_path / "theirs.qed"
    theirs.write_bytes((tmp_path / "top.qed").read_bytes())
    kind = (new or "x.raw").rpartition(".")[2]
    more = ("-F", kind) if new else ()
    qemu.img("rebase", "-f", "qed", "-b", new or "", *more, theirs)
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        await disk.rebase(new, format="raw" if kind == "raw" else "qed")
    qemu.compare(tmp_path / "top.qed", tmp_path / "want.raw")
    assert not qemu.check(tmp_path / "top.qed")["corruptions"]
    assert not qemu.check(tmp_path / "top.qed")["leaks"]
    with theirs.open("rb") as one, (tmp_path / "top.qed").open("rb") as two:
        assert one.read(128) == two.read(128), "another header or name"


@qemu.needs_qemu
async def test_commit_gives_what_qemu_img_commit_gives(tmp_path: Path) -> None:
    expected = await make_chain(tmp_path, cluster_size=4 * KIB)
    (tmp_path / "want.raw").write_bytes(expected)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("base.raw", "mid.qed", "top.qed"):
        (theirs / name).write_bytes((tmp_path / name).read_bytes())
    for name in ("top.qed", "mid.qed"):
        qemu.img("commit", "-q", "-f", "qed", theirs / name)
        async with qedasync.open(tmp_path / name, "r+") as disk:
            await disk.commit()
        qemu.compare(tmp_path / name, tmp_path / "want.raw")
        counts = qemu.check(tmp_path / name)
        assert not counts["corruptions"] + counts["leaks"], counts
    assert (tmp_path / "base.raw").read_bytes() == (theirs / "base.raw").read_bytes()


@qemu.needs_qemu
async def test_commit_keeps_qemu_out_of_the_backing_file_only_meanwhile(tmp_path: Path) -> None:
    await make_chain(tmp_path)
    async with qedasync.open(tmp_path / "top.qed", "r+") as disk:
        held = asyncio.Event()
        seen: list[int] = []

        def in_the_middle(done: int, total: int) -> None:
            if not held.is_set():
                held.set()
                seen.append(qemu.img("map", tmp_path / "mid.qed", status=None).returncode)

        await disk.commit(progress=in_the_middle)
        assert seen == [1]
        qemu.img("map", tmp_path / "mid.qed")
