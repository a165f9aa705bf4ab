"""Two programs and one image: who keeps whom out (dossier §13), with the real qemu-io."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import qedasync
from qedasync.errors import ImageLocked
from tests.helpers import qemu
from tests.helpers.process import Ended, Talk, python

pytestmark = qemu.needs_qemu

HOLDER = """
import asyncio, sys
import qedasync

async def main():
    image = await qedasync.open(sys.argv[1], sys.argv[2])
    await image.pread(512, 0)
    print("ready", flush=True)
    sys.stdin.read()
    await image.close()

asyncio.run(main())
"""
"""Has the image open until its input ends."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qed"
    qemu.create(path, 1 << 20)
    return path


def qemu_writes(image: Path) -> None:
    with qemu.hold(image) as holder:
        assert holder.ask("write -P 1 0 512").startswith("wrote")
        holder.leave()


def qemu_reads(image: Path) -> None:
    with qemu.hold(image, "-r") as holder:
        assert holder.ask("read 0 512").startswith("read")


def qemu_reads_by_force(image: Path) -> None:
    with qemu.hold(image, "-r", "-U") as holder:
        assert holder.ask("read 0 512").startswith("read")


def qemu_asks(image: Path) -> None:
    result = qemu.img("info", "-f", "qed", image, status=None)
    if result.returncode:
        raise Ended(result.stderr)


def qemu_creates(image: Path) -> None:
    result = qemu.img("create", "-q", "-f", "qed", image, "1M", status=None)
    if result.returncode:
        raise Ended(result.stderr)


USES = [qemu_writes, qemu_reads, qemu_reads_by_force, qemu_asks, qemu_creates]

KEPT_OUT = {
    "r+": {qemu_writes, qemu_reads, qemu_asks, qemu_creates},
    "r": {qemu_writes, qemu_creates},
}
"""Whom an image that we have open in this mode keeps out."""


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mode", ["r", "r+"])
async def test_open_image_keeps_qemu_out_until_close(
    image: Path, mode: str, use: Callable[[Path], None]
) -> None:
    async with qedasync.open(image, mode):  # type: ignore[arg-type]
        if use in KEPT_OUT[mode]:
            with pytest.raises(Ended, match=r"Failed to get.*lock|Is another process using"):
                use(image)
        else:
            use(image)
    use(image)


async def test_open_image_without_lock_keeps_nobody_out(image: Path) -> None:
    async with qedasync.open(image, "r+", lock=False):
        qemu_writes(image)


@pytest.mark.parametrize(
    ("options", "mode", "allowed"),
    [((), "r", False), ((), "r+", False), (("-r",), "r", True), (("-r",), "r+", False)],
)
async def test_open_image_that_qemu_holds(
    image: Path, options: tuple[str, ...], mode: str, allowed: bool
) -> None:
    before = image.read_bytes()
    with qemu.hold(image, *options) as holder:
        if not allowed:
            with pytest.raises(ImageLocked, match="lock=False"):
                await qedasync.open(image, mode)  # type: ignore[arg-type]
        async with qedasync.open(image, mode, lock=allowed):  # type: ignore[arg-type]
            pass
        holder.leave()
    async with qedasync.open(image, mode):  # type: ignore[arg-type]
        pass
    assert image.read_bytes() == before


async def test_create_over_image_that_qemu_holds_leaves_it_alone(image: Path) -> None:
    before = image.read_bytes()
    with qemu.hold(image), pytest.raises(ImageLocked):
        await qedasync.create(image, 2 << 20)
    assert image.read_bytes() == before


async def test_open_image_that_killed_qemu_held_is_allowed(image: Path) -> None:
    with qemu.hold(image) as holder:
        with pytest.raises(ImageLocked):
            await qedasync.open(image)
        holder.kill()
    async with qedasync.open(image, "r+") as disk:
        await disk.pwrite(b"mine", 0)


def test_killed_process_of_ours_no_longer_keeps_qemu_out(image: Path) -> None:
    with python(HOLDER, image, "r+") as holder:
        with pytest.raises(Ended, match="lock"):
            qemu_writes(image)
        holder.kill()
    qemu_writes(image)


def hold_by_us(image: Path, mode: str) -> Talk:
    return python(HOLDER, image, mode)


@pytest.mark.parametrize(
    ("first", "second", "allowed"),
    [("r", "r", True), ("r", "r+", False), ("r+", "r", False), ("r+", "r+", False)],
)
async def test_open_image_twice(image: Path, first: str, second: str, allowed: bool) -> None:
    """In one process and in two."""
    async with qedasync.open(image, first):  # type: ignore[arg-type]
        if allowed:
            async with qedasync.open(image, second) as disk:  # type: ignore[arg-type]
                await disk.pread(512, 0)
            hold_by_us(image, second).kill()
        else:
            with pytest.raises(ImageLocked):
                await qedasync.open(image, second)  # type: ignore[arg-type]
            with pytest.raises(Ended, match="ImageLocked"):
                hold_by_us(image, second)


async def test_backing_file_in_use_keeps_writers_out_of_qed_only(tmp_path: Path) -> None:
    """A raw backing file is read only shared, as QEMU does: a writer of it is not kept out."""
    base = tmp_path / "base.qed"
    qemu.create(base, 1 << 20)
    await qedasync.create(tmp_path / "top.qed", 1 << 20, backing_file="base.qed")
    async with qedasync.open(tmp_path / "top.qed", "r+"):
        qemu_reads(base)
        with pytest.raises(Ended, match="lock"):
            qemu_writes(base)
    qemu_writes(base)
