"""Images of other formats through qemu-nbd: what they read as, what they may name, what is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qedasync
from qedasync import (
    BackingError,
    BackingRefused,
    BackingRequest,
    FormatError,
    RequestError,
    StorageError,
    nbd,
)
from tests.helpers import qemu
from tests.helpers.process import python

pytestmark = pytest.mark.skipif(shutil.which("qemu-nbd") is None, reason="there is no qemu-nbd")

MIB = 1 << 20


@pytest.fixture(autouse=True)
def private_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where helpers put their sockets, empty again after each test."""
    place = Path(tempfile.mkdtemp(prefix="q"))  # a socket's path must be short
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    left = list(place.iterdir())
    shutil.rmtree(place)
    assert left == []
    assert helpers_of(tmp_path) == []


def processes_of(folder: Path) -> list[str]:
    """The command lines of processes that have a file of the folder among their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def helpers_of(folder: Path) -> list[str]:
    """Those of them that are, or start, a qemu-nbd."""
    return [words for words in processes_of(folder) if "qemu-nbd" in words]


def make(path: Path, fmt: str, size: int = 4 * MIB, *options: str) -> Path:
    """An image with data at 1 MiB."""
    qemu.img("create", "-q", "-f", fmt, *options, path, str(size))
    qemu.io(path, "write -P 7 1M 64k", options=("-f", fmt))
    return path


def over(path: Path, below: str, fmt: str, *options: str) -> Path:
    """A qcow2 overlay, whatever it names."""
    qemu.img("create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", fmt, *options, path, "4M")
    return path


# ------------------------------------------------------------------------- content


@pytest.mark.parametrize("fmt", nbd.FOREIGN_FORMATS)
async def test_image_reads_as_with_qemu(tmp_path: Path, fmt: str) -> None:
    path = make(tmp_path / "x", fmt)
    qemu.convert(path, fmt, tmp_path / "flat", "raw")
    flat = (tmp_path / "flat").read_bytes()
    async with nbd.foreign(path) as disk:
        assert (disk.format, disk.path, disk.readonly) == (fmt, str(path), True)
        assert disk.size == len(flat)
        assert await disk.pread(disk.size, 0) == flat
        runs = [run async for run in disk.extents()]
        assert runs[-1].end == disk.size
        assert not any(any(flat[run.start : run.end]) for run in runs if run.zero)
    assert disk.closed


async def test_image_converts_and_is_a_backing_file(tmp_path: Path) -> None:
    path = make(tmp_path / "x.vmdk", "vmdk")
    async with nbd.foreign(path, "vmdk") as disk:
        await qedasync.convert(disk, tmp_path / "x.qed")
    qemu.img("compare", "-f", "vmdk", "-F", "qed", path, tmp_path / "x.qed")
    await qedasync.create(
        tmp_path / "top.qed", 4 * MIB, backing_file="x.vmdk", backing_unchecked=True
    )
    with pytest.raises(BackingError, match="vmdk image"):
        await qedasync.open(tmp_path / "top.qed")
    async with qedasync.open(tmp_path / "top.qed", "r+", backing=nbd.backing()) as top:
        await top.pwrite(b"x", MIB + 1)
        assert await top.pread(3, MIB) == b"\7x\7"
    qemu.img("compare", "-f", "qed", "-F", "qed", tmp_path / "top.qed", tmp_path / "top.qed")


async def test_vpc_of_fixed_size_opens_when_the_format_is_said(tmp_path: Path) -> None:
    path = make(tmp_path / "x", "vpc", 4 * MIB, "-o", "subformat=fixed,force_size")
    assert (await qedasync.probe(path)).format == "raw"
    async with nbd.foreign(path, "vpc") as disk:
        assert disk.size == 4 * MIB
        assert await disk.pread(1, MIB) == b"\7"


@pytest.mark.parametrize("name", ["-x", "a b", "a,b=c", 'a"b\\', "ä", "a:b", "file:x", "json:{}"])
async def test_name_may_be_any(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "x", "qcow2").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    async with nbd.foreign(name) as disk:
        assert await disk.pread(1, MIB) == b"\7"


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("fmt", ["raw", "qed", "luks", "dmg", "", "QCOW2", "json:{}"])
async def test_other_format_is_refused_by_the_call(fmt: str) -> None:
    with pytest.raises(RequestError, match="it must be qcow2"):
        nbd.foreign("x", fmt)


async def test_file_of_no_such_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(MIB))
    await qedasync.create(tmp_path / "qed", MIB)
    for name in ("raw", "qed"):
        with pytest.raises(FormatError, match=f"is a {name} image"):
            await nbd.foreign(tmp_path / name)
        with pytest.raises(FormatError, match="is not a vdi image"):
            await nbd.foreign(tmp_path / name, "vdi")


async def test_damaged_image_is_an_error_in_qemus_words(tmp_path: Path) -> None:
    path = make(tmp_path / "x", "qcow2")
    with path.open("r+b") as file:
        file.seek(100)
        file.write(struct.pack(">I", 1 << 24))  # the header's length
    with pytest.raises(FormatError, match="length makes no sense"):
        await nbd.foreign(path)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(struct.pack(">I", 104))
        file.seek(72)
        file.write(struct.pack(">Q", 1 << 60))  # a feature
    with pytest.raises(StorageError, match="Unsupported qcow2 feature") as caught:
        await nbd.foreign(path)
    assert caught.value.filename == str(path)


async def test_missing_file_or_program_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(qedasync.ImageNotFound):
        await nbd.foreign(tmp_path / "x")
    path = make(tmp_path / "x", "qcow2")
    with pytest.raises(StorageError, match="no qemu-nobody here"):
        await nbd.foreign(path, program="qemu-nobody")


async def test_image_in_use_is_refused_unless_locks_are_off(tmp_path: Path) -> None:
    path = make(tmp_path / "x", "qcow2")
    with qemu.hold(path, "-f", "qcow2"):
        with pytest.raises(qedasync.ImageLocked):
            await nbd.foreign(path)
        async with nbd.foreign(path, lock=False) as disk:
            assert await disk.pread(1, MIB) == b"\7"


async def test_writes_are_refused(tmp_path: Path) -> None:
    async with nbd.foreign(make(tmp_path / "x", "qcow2")) as disk:
        with pytest.raises(qedasync.ReadOnly):
            await disk.pwrite(b"x", 0)


# --------------------------------------------------------------------- other files


@pytest.mark.parametrize("below", ["raw", "qcow2", "qed", "vmdk"])
async def test_chain_is_read_through(tmp_path: Path, below: str) -> None:
    make(tmp_path / "base", below)
    over(tmp_path / "middle", "base", below)
    qemu.io(tmp_path / "middle", "write -P 8 2M 64k", options=("-f", "qcow2"))
    top = over(tmp_path / "top", "./middle", "qcow2")
    async with nbd.foreign(top) as disk:
        assert (disk.backing_file, disk.backing_format) == ("./middle", "qcow2")
        assert await disk.pread(1, MIB) + await disk.pread(1, 2 * MIB) == b"\7\x08"
    async with nbd.foreign(top, backing=False) as disk:
        assert await disk.pread(4 * MIB, 0) == bytes(4 * MIB)


async def test_unrecorded_format_of_a_backing_file_is_looked_for(tmp_path: Path) -> None:
    make(tmp_path / "base", "qcow2")
    top = over(tmp_path / "top", "base", "qcow2", "-o", "compat=0.10")
    content = top.read_bytes().replace(b"qcow2", b"\0\0\0\0\0")
    top.write_bytes(content.replace(struct.pack(">II", 0xE2792ACA, 5), bytes(8)))
    async with nbd.foreign(top) as disk:
        assert disk.backing_format is None
        assert await disk.pread(1, MIB) == b"\7"


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../base", "json:{}", "nbd://localhost/x", "sub/link", "file:base"]
)
async def test_name_that_the_policy_forbids_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "dir" / "sub" / "link").symlink_to("/etc/passwd")
    (tmp_path / "base").write_bytes(b"secret".ljust(512))
    (tmp_path / "dir" / "base").write_bytes(b"secret".ljust(512))
    path = over(tmp_path / "dir" / "x", name, "raw")
    with pytest.raises(BackingRefused) as caught:
        await nbd.foreign(path)
    assert caught.value.name == name
    async with nbd.foreign(path, backing=False) as disk:
        assert await disk.pread(512, 0) == bytes(512)


async def test_name_behind_another_image_passes_the_same_policy(tmp_path: Path) -> None:
    over(tmp_path / "middle", "/etc/passwd", "raw")
    with pytest.raises(BackingRefused, match="'/etc/passwd'"):
        await nbd.foreign(over(tmp_path / "top", "middle", "qcow2"))


async def test_policy_function_is_asked_for_every_file(tmp_path: Path) -> None:
    make(tmp_path / "base", "raw")
    over(tmp_path / "middle", "base", "raw")
    top = over(tmp_path / "top", "middle", "qcow2")
    asked: list[BackingRequest] = []

    async def policy(request: BackingRequest) -> bool:
        asked.append(request)
        return True

    await (await nbd.foreign(top, backing=policy)).close()
    middle = str(tmp_path / "middle")
    assert asked == [
        BackingRequest("middle", middle, str(top), 1, "qcow2"),
        BackingRequest("base", str(tmp_path / "base"), middle, 2, "raw"),
    ]


async def test_any_allows_files_elsewhere_but_no_urls(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    make(tmp_path / "base", "raw")
    path = over(tmp_path / "dir" / "x", "../base", "raw")
    async with nbd.foreign(path, backing="any") as disk:
        assert await disk.pread(1, MIB) == b"\7"
    with pytest.raises(BackingRefused):
        await nbd.foreign(over(path, "nbd://localhost/x", "raw"), backing="any")


async def test_chain_in_a_circle_is_found(tmp_path: Path) -> None:
    over(tmp_path / "a", "b", "qcow2")
    over(tmp_path / "b", "a", "qcow2")
    with pytest.raises(BackingError, match="comes back"):
        await nbd.foreign(tmp_path / "a", "qcow2")


async def test_missing_backing_file_is_a_backing_error(tmp_path: Path) -> None:
    with pytest.raises(BackingError, match="No such file"):
        await nbd.foreign(over(tmp_path / "x", "gone", "raw"))


async def test_external_data_file_passes_the_policy(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    path = make(tmp_path / "dir" / "x", "qcow2", 4 * MIB, "-o", f"data_file={tmp_path}/dir/data")
    async with nbd.foreign(path) as disk:
        assert await disk.pread(1, MIB) == b"\7"
    (tmp_path / "dir" / "data").rename(tmp_path / "data")
    (tmp_path / "dir" / "data").symlink_to("../data")
    with pytest.raises(BackingRefused, match="names another file"):
        await nbd.foreign(path)


@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentSparse"])
async def test_extents_of_a_vmdk_pass_the_policy(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "x.vmdk", "vmdk", 4 * MIB, "-o", f"subformat={kind}")
    async with nbd.foreign(path) as disk:
        assert await disk.pread(1, MIB) == b"\7"
    (extent,) = [one for one in tmp_path.iterdir() if one != path]
    path.write_text(path.read_text().replace(f'"{extent.name}"', '"/etc/passwd"'))
    with pytest.raises(BackingRefused, match="'/etc/passwd'"):
        await nbd.foreign(path)


async def test_extent_that_lists_extents_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "x.vmdk", "vmdk", 4 * MIB, "-o", "subformat=twoGbMaxExtentSparse")
    (extent,) = [one for one in tmp_path.iterdir() if one != path]
    text = b'# Disk DescriptorFile\nversion=1\nRW 8 FLAT "/etc/passwd" 0\n'
    header = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, 1, 1).ljust(512, b"\0")
    extent.write_bytes(header + text.ljust(512, b"\0"))
    with pytest.raises(BackingRefused, match="names others"):
        await nbd.foreign(path)
    with pytest.raises(BackingRefused, match="'/etc/passwd'"):
        await nbd.foreign(extent, "vmdk")


async def test_parent_of_a_vmdk_passes_the_policy(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    make(tmp_path / "base.vmdk", "vmdk")
    path = tmp_path / "dir" / "x.vmdk"
    qemu.img("create", "-q", "-f", "vmdk", "-b", tmp_path / "base.vmdk", "-F", "vmdk", path)
    with pytest.raises(BackingRefused, match=r"base\.vmdk"):
        await nbd.foreign(path)
    async with nbd.foreign(path, backing="any") as disk:
        assert await disk.pread(1, MIB) == b"\7"


async def test_vpc_that_holds_differences_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "x", "vpc")
    with path.open("r+b") as file:
        file.seek(60)
        file.write(struct.pack(">I", 4))
    with pytest.raises(FormatError, match="differencing"):
        await nbd.foreign(path)


# ------------------------------------------------------------------------ policies


async def test_backing_opens_nbd_uris_where_the_policy_lets_them_pass(tmp_path: Path) -> None:
    base = await qedasync.open_raw("base", storage=qedasync.MemoryStorage(b"b" * MIB))
    async with base, nbd.serve({"x": base}, port=0, host="127.0.0.1") as server:
        uri = server.uri("x")
        top = tmp_path / "top.qed"
        await qedasync.create(top, MIB, backing_file=uri, backing_unchecked=True)
        forbidding: list[Any] = ["auto", True, lambda request: False]
        allowing: list[Any] = ["any", lambda request: request.name == uri]
        for policy in forbidding:
            with pytest.raises(BackingRefused):
                await qedasync.open(top, backing=nbd.backing(policy))
        for policy in allowing:
            async with qedasync.open(top, backing=nbd.backing(policy)) as image:
                assert await image.pread(2, MIB - 2) == b"bb"
    with pytest.raises(BackingError, match=r"top\.qed"):
        await qedasync.open(top, backing=nbd.backing())


async def test_backing_in_the_own_directory_opens_other_formats_there(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    make(tmp_path / "far.qcow2", "qcow2")
    make(tmp_path / "dir" / "near.qcow2", "qcow2")
    top = tmp_path / "dir" / "top.qed"
    for name, opens in (("near.qcow2", True), ("../far.qcow2", False)):
        await qedasync.create(top, 4 * MIB, backing_file=name, backing_unchecked=True)
        if opens:
            async with qedasync.open(top, backing=nbd.backing("auto")) as image:
                assert await image.pread(1, MIB) == b"\7"
        else:
            with pytest.raises(BackingRefused):
                await qedasync.open(top, backing=nbd.backing("auto"))


# -------------------------------------------------------------------- what is left


async def test_helper_ends_with_its_disk_and_not_before(tmp_path: Path) -> None:
    path = make(tmp_path / "x", "qcow2")
    disk = await nbd.foreign(path)
    assert helpers_of(tmp_path)
    await disk.pread(1, 0)
    await disk.close()
    assert helpers_of(tmp_path) == []
    await disk.close()
    with pytest.raises(qedasync.ImageClosed):
        await disk.pread(1, 0)


async def test_disk_whose_helper_was_killed_fails_and_closes(tmp_path: Path) -> None:
    disk = await nbd.foreign(make(tmp_path / "x", "qcow2"))
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = entry.read_bytes().split(b"\0")
        if words[0].endswith(b"qemu-nbd") and str(tmp_path).encode() in b"".join(words):
            os.kill(int(entry.parent.name), signal.SIGKILL)
    with pytest.raises(StorageError):
        await disk.pread(1, 0)
    await disk.close()


async def test_opening_cancelled_at_any_turn_leaves_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "x", "qcow2")
    turns, ended = 0, False
    while not ended:
        task = asyncio.create_task(_open_and_close(path))
        for _ in range(turns):
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        await asyncio.wait([task])
        assert helpers_of(tmp_path) == [], turns
        turns = turns * 2 + 1
    assert turns > 10


async def _open_and_close(path: Path) -> None:
    async with nbd.foreign(path) as disk:
        await disk.pread(1, 0)


KILLED = """
import asyncio, sys, tempfile
from qedasync import nbd

async def main():
    print("ready", flush=True)
    disk = await nbd.foreign(sys.argv[1])
    print("open", flush=True)
    await asyncio.sleep(100)

tempfile.tempdir = sys.argv[2]
asyncio.run(main())
"""


@pytest.mark.parametrize("milliseconds", [0, 2, 5, 10, 20, 40, None])
def test_process_that_is_killed_takes_its_helper_along(
    tmp_path: Path, private_directory: Path, milliseconds: int | None
) -> None:
    path = make(tmp_path / "x", "qcow2")
    with python(KILLED, path, private_directory) as process:
        if milliseconds is None:
            assert process.answer_lines() == ["open"]
        else:
            time.sleep(milliseconds / 1000)  # a moment of its work, whichever
        process.kill()
    until = time.monotonic() + 20
    while processes_of(tmp_path):  # a helper to be is a copy of the process, for a moment
        assert time.monotonic() < until
        time.sleep(0.01)
    if milliseconds is not None:  # perhaps killed before there was anybody to remove it
        for one in private_directory.iterdir():
            shutil.rmtree(one)


async def test_helpers_beside_one_another_do_not_meet(tmp_path: Path) -> None:
    paths = []
    for fill in range(4):
        path = make(tmp_path / f"{fill}", "qcow2")
        qemu.io(path, f"write -P {fill + 1} 0 64k", options=("-f", "qcow2"))
        paths.append(path)
    disks = await asyncio.gather(*map(_opened, paths))
    found = [(await disk.pread(1, 0))[0] for disk in disks]
    for disk in disks:
        await disk.close()
    assert found == [1, 2, 3, 4]


async def _opened(path: Path) -> nbd.ForeignImage:
    return await nbd.foreign(path)
