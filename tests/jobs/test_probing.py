"""probe: what a file says of itself, whatever state its chain is in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import qedasync
from qedasync import FormatError, ImageNotFound
from qedasync.jobs.probing import ImageInfo
from tests.jobs.disks import MIB


async def test_probe_raw_file_is_raw(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    assert await qedasync.probe(path) == ImageInfo(
        str(path), "raw", 1024, os.stat(path).st_blocks * 512
    )


@pytest.mark.parametrize("content", [b"", b"QE", b"QEE"])
async def test_probe_of_a_few_bytes_is_raw(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert (await qedasync.probe(tmp_path / "a")).format == "raw"


async def test_probe_image_tells_its_facts_without_its_backing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.qed"
    await qedasync.create(
        path,
        MIB,
        cluster_size=8192,
        table_size=2,
        backing_file="gone.raw",
        backing_format="raw",
        backing_unchecked=True,
    )
    found = await qedasync.probe(path)
    assert found == ImageInfo(
        str(path), "qed", MIB, os.stat(path).st_blocks * 512, 8192, 2, "gone.raw", "raw", False
    )
    assert json.loads(json.dumps(found.json()))["virtual_size"] == MIB


async def test_probe_of_an_image_in_use_says_that_it_needs_a_check(tmp_path: Path) -> None:
    await qedasync.create(tmp_path / "a.qed", MIB)
    async with qedasync.open(tmp_path / "a.qed", "r+") as image:
        await image.pwrite(b"x", 0)
        assert (await qedasync.probe(tmp_path / "a.qed")).needs_check
        with pytest.raises(qedasync.ImageLocked):
            await qedasync.probe(tmp_path / "a.qed", lock=True)
    assert not (await qedasync.probe(tmp_path / "a.qed", lock=True)).needs_check


@pytest.mark.parametrize("content", [b"QED\0" + b"\xff" * 100, b"QED\0", b"QED"])
async def test_probe_of_a_damaged_image_is_a_format_error(tmp_path: Path, content: bytes) -> None:
    # As in QEMU, what is not there of a short file is zeroes, and the magic's last byte is one.
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FormatError):
        await qedasync.probe(tmp_path / "a")


FOREIGN = {"qcow2": b"QFI\xfb\0\0\0\3", "vhdx": b"vhdxfile", "vmdk": b"# Disk\nversion=1\n"}


@pytest.mark.parametrize("fmt", FOREIGN)
async def test_probe_of_another_format_says_which(tmp_path: Path, fmt: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(FOREIGN[fmt].ljust(MIB, b"\0"))
    actual = os.stat(path).st_blocks * 512
    assert await qedasync.probe(path) == ImageInfo(str(path), fmt, None, actual)


async def test_job_on_a_file_of_another_format_is_refused_unless_it_is_said_to_be_raw(
    tmp_path: Path,
) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(FOREIGN["qcow2"].ljust(MIB, b"\0"))
    with pytest.raises(FormatError, match="is a qcow2 image"):
        await qedasync.convert(source, target, format="raw")
    with pytest.raises(FormatError, match="is a qcow2 image"):
        await qedasync.compare(source, source)
    assert not target.exists()
    await qedasync.convert(source, target, format="raw", source_format="raw")
    assert target.read_bytes() == source.read_bytes()


async def test_probe_of_nothing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        await qedasync.probe(tmp_path / "a")
