"""Images that a killed program left dirty, opened by the other one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import qedasync
from qedasync.format.header import Features, Header
from tests.helpers import qemu
from tests.helpers.process import python

pytestmark = qemu.needs_qemu

KIB = 1024
CLUSTER = 4 * KIB
SIZE = 1 << 30  # the writer stops when the pipe is full of its numbers, long before that
CHUNK = 6 * KIB  # one and a half clusters: filling in at both ends

WRITER = f"""
import asyncio, sys
import qedasync

async def work(image, worker):
    number = worker
    while True:
        byte = number % 255 + 1
        await image.pwrite(bytes([byte]) * {CHUNK}, number * {2 * CHUNK})
        print(number, flush=True)
        number += 8

async def main():
    async with qedasync.open(sys.argv[1], "r+") as image:
        print("ready", flush=True)
        sys.stdin.readline()
        await asyncio.gather(*(work(image, worker) for worker in range(8)))

asyncio.run(main())
"""
"""Once told to go, eight tasks write chunks 0, 1, 2, ... and say the number of each one done."""


def header_of(image: Path) -> Header:
    with image.open("rb") as file:
        return Header.parse(file.read(64))


def chunk(number: int) -> bytes:
    return bytes([number % 255 + 1]) * CHUNK


async def our_image_killed_in_mid_write(image: Path, wanted: int) -> set[int]:
    """Run the writer until it has said ``wanted`` numbers, and kill it; the numbers it said."""
    await qedasync.create(image, SIZE, cluster_size=CLUSTER, table_size=2)
    said: set[int] = set()
    with python(WRITER, image) as writer:
        writer.tell("go")
        while len(said) < wanted:
            said |= {int(line) for line in writer.answer_lines()}
    return said


@pytest.mark.parametrize("wanted", [1, 150])
async def test_image_we_left_dirty_is_repaired_by_qemu(tmp_path: Path, wanted: int) -> None:
    image, raw = tmp_path / "ours.qed", tmp_path / "back.raw"
    acknowledged = await our_image_killed_in_mid_write(image, wanted)
    assert header_of(image).need_check

    qemu.img("check", "-q", "-f", "qed", "-r", "all", image, status=None)
    counts = qemu.check(image)
    assert (counts["corruptions"], counts["check-errors"]) == (0, 0)
    assert not header_of(image).need_check
    qemu.convert(image, "qed", raw, "raw")
    with raw.open("rb") as file:
        for number in acknowledged:
            file.seek(number * 2 * CHUNK)
            assert file.read(CHUNK) == chunk(number), number


async def test_image_we_left_dirty_is_repaired_by_us(tmp_path: Path) -> None:
    image = tmp_path / "ours.qed"
    acknowledged = await our_image_killed_in_mid_write(image, 150)
    async with qedasync.open(image, "r+") as disk:
        for number in acknowledged:
            assert await disk.pread(CHUNK, number * 2 * CHUNK) == chunk(number), number
        await disk.pwrite(b"on", SIZE - 2)
    assert not header_of(image).need_check
    counts = qemu.check(image)
    assert (counts["corruptions"], counts["check-errors"]) == (0, 0)


def qemu_image_killed(image: Path) -> None:
    """Eight chunks of qemu-io, killed before it could close."""
    qemu.create(image, SIZE, cluster_size=CLUSTER, table_size=2)
    with qemu.hold(image) as writer:
        for number in range(8):
            answer = writer.ask(f"write -P {number + 1} {number * 2 * CHUNK} {CHUNK}")
            assert answer.startswith("wrote"), answer


async def test_image_qemu_left_dirty_is_repaired_by_us(tmp_path: Path) -> None:
    image = tmp_path / "qemu.qed"
    qemu_image_killed(image)
    assert header_of(image).need_check
    async with qedasync.open(image, "r+") as disk:
        assert not disk.features & Features.NEED_CHECK
        for number in range(8):
            assert await disk.pread(CHUNK, number * 2 * CHUNK) == chunk(number)
    assert qemu.check(image)["corruptions"] == 0


async def test_image_qemu_left_dirty_with_entries_past_the_end_is_repaired_alike(
    tmp_path: Path,
) -> None:
    """A power cut lost the last data clusters, whose L2 entries had reached the disk."""
    ours, theirs, raw = tmp_path / "ours.qed", tmp_path / "theirs.qed", tmp_path / "back.raw"
    qemu_image_killed(ours)
    with ours.open("r+b") as file:
        file.truncate(ours.stat().st_size - 2 * CLUSTER - 700)
    shutil.copy(ours, theirs)

    async with qedasync.open(ours, "r+") as disk:
        content = await disk.pread(16 * CHUNK, 0)
    qemu.img("check", "-q", "-f", "qed", "-r", "all", theirs, status=None)

    for image in (ours, theirs):
        counts = qemu.check(image)
        assert (counts["corruptions"], counts["check-errors"]) == (0, 0)
        assert not header_of(image).need_check
    qemu.convert(theirs, "qed", raw, "raw")
    with raw.open("rb") as file:
        assert file.read(16 * CHUNK) == content
    assert content[:CHUNK] == chunk(0)
    assert content[14 * CHUNK : 15 * CHUNK] != chunk(7)
