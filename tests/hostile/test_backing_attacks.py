"""Images that want other files: only what the policy allows is opened, whatever the name says.

What is opened is seen by Python's audit events, not asked of the code under test.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from array import array
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

import qedasync
from qedasync import BackingError, BackingRefused
from qedasync.errors import HeaderError, StorageError
from qedasync.format.header import Features
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.hostile.bases import furnish
from tests.hostile.cost import cheap
from tests.hostile.meter import Meter
from tests.hostile.mutants import NAMES
from tests.hostile.watch import files, outside, watch
from tests.quirks.images import CLUSTER, KIB, MIB, image, write_file

GIB = 1 << 30

pytestmark = pytest.mark.timeout(20)


def overlay(
    name: bytes, size: int = MIB, *, raw: bool = False, dirty: bool = False, **more: Any
) -> SparseBytes:
    """An image with this backing name, its bytes as they are."""
    features = Features.BACKING_FILE
    features |= Features.BACKING_FORMAT_NO_PROBE if raw else 0
    features |= Features.NEED_CHECK if dirty else 0
    content = image(
        size,
        features=int(features),
        backing_filename_offset=64,
        backing_filename_size=len(name),
        header_size=2,
        l1_table_offset=2 * more.get("cluster_size", CLUSTER),
        **more,
    )
    content.write(name, 64)
    return content


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A directory of images, with tempting files in and around it."""
    return furnish(tmp_path)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:40]))
async def test_backing_name_opens_nothing_outside_the_images_directory(
    images: Path, name: bytes, raw: bool
) -> None:
    path = write_file(images / "self.qed", overlay(name, raw=raw, dirty=True))
    os.utime(path, (10**9, 10**9))
    for mode in ("r", "r+"):
        with watch().looking() as seen:
            readable = await _readable(path, mode)
        written = path.stat().st_mtime != 10**9
        assert not written or (readable and mode == "r+"), "a failing open wrote"
        assert seen, "the watch is blind"
        assert outside(seen, images) == []


async def _readable(path: Path, mode: str) -> bool:
    """Whether the image opens; then it has the content of ``base.raw``, or no backing file."""
    try:
        async with qedasync.open(path, cast("Any", mode), storage="posix") as disk:
            assert await disk.pread(4, 0) in (bytes(4), bytes([0, 1, 2, 3]))
    except BackingError:
        return False
    return True


@pytest.mark.parametrize("policy", ["auto", "any", True, lambda request: True])
@pytest.mark.parametrize(
    "name",
    [
        b'json:{"driver":"file","filename":"base.raw"}',
        b"nbd://127.0.0.1:10809/x",
        b"nbd+unix:///x?socket=/tmp/x",
        b"fd:0",
        b"file.driver:base.raw",
        b"a:b/c",
    ],
)
async def test_protocol_is_refused_whatever_the_policy_and_nothing_is_opened(
    images: Path, name: bytes, policy: Any
) -> None:
    (images / "a:b").mkdir()
    (images / "a:b" / "c").write_bytes(b"x" * 512)
    path = write_file(images / "self.qed", overlay(name))
    with watch().looking() as seen, pytest.raises(BackingRefused) as caught:
        await qedasync.open(path, backing=policy)
    assert caught.value.errno == errno.EPERM
    assert files(seen) <= {str(path)}


@pytest.mark.parametrize(
    "name", [b"../base.raw", b"link.raw", b"below/base.raw", b"file:/etc/passwd", b"/etc/passwd"]
)
async def test_any_file_is_opened_only_for_those_who_ask(images: Path, name: bytes) -> None:
    path = write_file(images / "self.qed", overlay(name, raw=True))
    with pytest.raises(BackingRefused):
        await qedasync.open(path)
    async with qedasync.open(path, backing="any") as disk:
        assert any(await disk.pread(100, 0))
    async with qedasync.open(path, backing=False) as disk:
        assert not any(await disk.pread(100, 0))


# -------------------------------------------------------------------------- loops


@pytest.mark.parametrize("policy", ["auto", "any"])
@pytest.mark.parametrize("how", ["itself", "./itself", "symbolic link", "hard link", "circle"])
async def test_chain_that_comes_back_ends_at_once(images: Path, how: str, policy: Any) -> None:
    path = images / "self.qed"
    names = {"itself": b"self.qed", "./itself": b"../images/./self.qed", "circle": b"1.qed"}
    write_file(path, overlay(names.get(how, b"other.qed")))
    if how == "symbolic link":
        (images / "other.qed").symlink_to("self.qed")
    elif how == "hard link":
        (images / "other.qed").hardlink_to(path)
    for number in range(1, 5):
        write_file(images / f"{number}.qed", overlay(f"{number % 4 + 1}.qed".encode()))
    with watch().looking() as seen, pytest.raises(BackingError) as caught:
        await qedasync.open(path, "r+", backing=policy)
    assert caught.value.errno == errno.ELOOP
    assert len(seen) <= 10


async def test_chain_of_65_files_is_refused_and_of_64_read(images: Path) -> None:
    for number in range(66):
        name = b"base.raw" if number == 65 else f"{number + 1}.qed".encode()
        write_file(images / f"{number}.qed", overlay(name))
    with pytest.raises(BackingError) as caught:
        await qedasync.open(images / "1.qed")
    assert caught.value.errno == errno.ELOOP
    async with qedasync.open(images / "2.qed") as disk:
        assert await disk.pread(4, 0) == bytes([0, 1, 2, 3])
        (extent, *_) = await disk.block_status(0, 16 * KIB)
        assert (extent.depth, extent.kind) == (64, "backing")


# ------------------------------------------------------------------- special files


@pytest.mark.parametrize("what", ["pipe", "below", "/dev/zero", "/dev/tty", "missing", "endless"])
@pytest.mark.parametrize("kind", ["posix", "aiofiles", "memory"])
@pytest.mark.parametrize("mode", ["r", "r+"])
async def test_image_that_is_no_file_is_an_error_and_not_waited_for(
    images: Path, what: str, kind: str, mode: str
) -> None:
    with pytest.raises(StorageError):
        await qedasync.open(images / what, cast("Any", mode), storage=kind)


@pytest.mark.parametrize("what", ["pipe", "below", "/dev/zero", "/dev/tty", "missing", "endless"])
async def test_backing_file_that_is_no_file_is_an_error_and_never_opened(
    images: Path, what: str
) -> None:
    path = write_file(images / "self.qed", overlay(os.fsencode(images / what)))
    for policy in ("auto", "any"):
        with watch().looking() as seen, pytest.raises(BackingError):
            await qedasync.open(path, backing=policy)
        assert files(seen) <= {str(path)}


async def test_raw_disk_that_pretends_to_be_an_image_names_only_what_is_allowed(
    images: Path,
) -> None:
    """A guest wrote a QED header to its raw disk; the overlay does not say that the disk is raw."""
    write_file(images / "disk.raw", overlay(b"/etc/passwd"))
    path = write_file(images / "self.qed", overlay(b"disk.raw"))
    with watch().looking() as seen, pytest.raises(BackingRefused):
        await qedasync.open(path)
    assert outside(seen, images) == []
    write_file(path, overlay(b"disk.raw", raw=True))
    async with qedasync.open(path) as disk:
        assert await disk.pread(4, 0) == b"QED\0"


# --------------------------------------------------------------------------- cost


def test_chain_of_images_with_16_mib_of_l1_each_is_refused_before_it_costs_much(
    images: Path,
) -> None:
    for number in range(12):
        name = f"{number + 1}.qed".encode()
        big = overlay(name, 1 << 62, cluster_size=MIB, table_size=16)
        write_file(images / f"{number}.qed", big)

    async def use() -> None:
        with pytest.raises(BackingError) as caught:
            await qedasync.open(images / "0.qed", "r+")
        assert caught.value.errno == errno.ENOMEM

    with cheap():
        asyncio.run(use())


def test_chain_of_two_images_with_16_mib_of_l1_each_fits(images: Path) -> None:
    big = overlay(b"1.qed", 1 << 62, cluster_size=MIB, table_size=16)
    write_file(images / "0.qed", big)
    write_file(images / "1.qed", image(1 << 62, cluster_size=MIB, table_size=16))

    async def use() -> None:
        async with qedasync.open(images / "0.qed", "r+") as disk:
            for pos in (0, 1 << 60, disk.size - 1):
                assert await disk.pread(1, pos) == b"\0"
            await disk.pwrite(b"x", 1 << 50)

    with cheap():
        asyncio.run(use())


@pytest.mark.parametrize("depth", [1, 8])
def test_extents_over_a_backing_file_of_endless_runs_come_one_by_one(
    images: Path, depth: int
) -> None:
    """The backing file says something else every MiB, of 4 EiB: asked for all, it never ends."""
    below = image(1 << 62, cluster_size=MIB, table_size=16, file_size=40 * MIB)
    below.write(array("Q", [17 * MIB]).tobytes() * 64, MIB)
    below.write(struct.pack("<QQ", 1, 0) * 512, 17 * MIB)
    write_file(images / f"{depth}.qed", below)
    for number in range(depth):
        write_file(images / f"{number}.qed", overlay(f"{number + 1}.qed".encode(), 1 << 32))
    top = overlay(b"1.qed", 1 << 50, cluster_size=MIB, table_size=1)

    async def use() -> None:
        meter = Meter(MemoryStorage(top))
        async with qedasync.open(images / "0.qed", storage=meter) as disk:
            found = []
            async with aclosing(cast("Any", disk.extents())) as extents:
                async for extent in extents:
                    found.append(extent)
                    if len(found) == 300:
                        break
            assert [extent.length for extent in found] == [MIB] * 300
            assert {extent.depth for extent in found} == {depth}
            assert meter.calls < 50

    with cheap():
        asyncio.run(use())


async def test_small_writes_into_an_overlay_of_8_mib_clusters_are_taken_a_few_at_a_time(
    images: Path,
) -> None:
    """Each needs 8 MiB from the backing file; all at once they would take 96 MiB."""
    with (images / "base.raw").open("r+b") as file:
        file.truncate(GIB)
    content = overlay(b"base.raw", GIB, cluster_size=8 * MIB, table_size=1, raw=True)
    path = write_file(images / "self.qed", content)
    with cheap():
        async with qedasync.open(path, "r+") as disk:
            await asyncio.gather(*(disk.pwrite(b"x", i * 8 * MIB + 5) for i in range(12)))
            assert disk.stats.groups >= 6
            assert await disk.pread(6, 0) == bytes([0, 1, 2, 3, 4]) + b"x"


async def test_backing_name_longer_than_the_format_allows_is_no_image(images: Path) -> None:
    for length, wrong in ((4095, BackingError), (4096, HeaderError)):
        content = overlay(b"n" * length)
        content.write(b"n" * length, 64)
        meter = Meter(MemoryStorage(content))
        with pytest.raises(wrong):
            await qedasync.open(images / "self.qed", "r+", storage=meter)
        assert (meter.changes, meter.closed) == (0, True)


async def test_open_that_fails_at_the_backing_file_has_written_nothing(images: Path) -> None:
    """Neither the repair nor the clearing of unknown bits, for nobody wanted this image open."""
    content = overlay(b"missing", dirty=True)
    content.write(b"\xff" * 8, 32)
    before = bytes(content)
    meter = Meter(MemoryStorage(content))
    with pytest.raises(BackingError):
        await qedasync.open(images / "self.qed", "r+", storage=meter)
    assert (bytes(content), meter.changes) == (before, 0)
    (images / "missing").write_bytes(b"here")
    async with qedasync.open(images / "self.qed", "r+", storage=MemoryStorage(content)) as disk:
        assert await disk.pread(4, 0) == b"here"
    assert bytes(content)[32:40] == bytes(8)
