"""Overlays and plain images that QEMU and we change in turn, against a model.

QEMU 7.2 puts backing data into the rest of a ZERO cluster that it writes in part (dossier Q5), so
it writes whole clusters where there may be ZERO ones: in the second half of the image.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import qedasync
from tests.helpers import qemu

pytestmark = qemu.needs_qemu

KIB = 1024
SIZE = 2048 * KIB
HALF = SIZE // 2
ROUNDS = 3
WRITES = 12


@dataclass
class Pair:
    """An image and what it should read as.

    Attributes:
        image: the QED image.
        raw: a raw file for QEMU to compare with.
        model: the content.
        grain: the cluster size in bytes.
    """

    image: Path
    raw: Path
    model: bytearray
    grain: int
    rng: random.Random

    def range(self, *, whole: bool, half: int) -> tuple[int, int]:
        """A random (pos, length) in a half of the image, of whole clusters or of sectors."""
        grain = self.grain if whole else 512
        length = grain * self.rng.randint(1, max(1, 3 * self.grain // grain))
        return half * HALF + grain * self.rng.randrange((HALF - length) // grain), length

    def put(self, pos: int, data: bytes) -> None:
        """Note a write."""
        self.model[pos : pos + len(data)] = data

    def by_qemu(self) -> None:
        """Some writes by qemu-io."""
        commands = []
        for _ in range(WRITES):
            half = self.rng.randrange(2)
            pos, length = self.range(whole=half == 1, half=half)
            byte = 0 if half and self.rng.random() < 0.4 else self.rng.randint(1, 255)
            commands.append(f"write {f'-P {byte}' if byte else '-z'} {pos} {length}")
            self.put(pos, bytes([byte]) * length)
        said = qemu.io(self.image, *commands)
        assert "error" not in said.lower(), said

    async def by_us(self) -> None:
        """Some writes by us, of any length; all zero writes and no others at the end."""
        async with qedasync.open(self.image, "r+") as image:
            for _ in range(WRITES):
                half = self.rng.randrange(2)
                pos, length = self.range(whole=False, half=half)
                pos, length = pos + self.rng.randrange(512), length - self.rng.randrange(512)
                if half and self.rng.random() < 0.4:
                    await image.write_zeroes(length, pos)
                    self.put(pos, bytes(length))
                else:
                    data = self.rng.randbytes(length)
                    await image.pwrite(data, pos)
                    self.put(pos, data)

    async def verify(self) -> None:
        """Both programs read the model, and QEMU finds the tables sound."""
        self.raw.write_bytes(self.model)
        async with qedasync.open(self.image) as image:
            assert await image.pread(image.size, 0) == self.model
        qemu.compare(self.image, self.raw)
        counts = qemu.check(self.image)
        assert (counts["corruptions"], counts["leaks"], counts["check-errors"]) == (0, 0, 0)


Backing = Literal["none", "raw", "qed"]


async def new_pair(tmp_path: Path, backing: Backing, maker: str, cluster_size: int) -> Pair:
    """An image without a backing file, or over a raw or QED file with random content."""
    rng = random.Random(f"{backing} {maker} {cluster_size}")
    image, raw, base_raw = tmp_path / "top.qed", tmp_path / "model.raw", tmp_path / "base.raw"
    base_raw.write_bytes(rng.randbytes(SIZE * 3 // 4 + 700 * 512))
    if backing == "qed":
        qemu.convert(base_raw, "raw", tmp_path / "base.qed", "qed")
    below = None if backing == "none" else f"base.{backing}"
    if maker == "qemu":
        named = (below, backing) if below else None
        qemu.create(image, SIZE, cluster_size=cluster_size, table_size=2, backing=named)
    else:
        await qedasync.create(
            image,
            SIZE,
            cluster_size=cluster_size,
            table_size=2,
            backing_file=below,
            backing_format=None if backing == "none" else backing,
        )
    model = bytearray(SIZE)
    if below:
        data = base_raw.read_bytes()[:SIZE]
        model[: len(data)] = data
    return Pair(image, raw, model, cluster_size, rng)


@pytest.mark.parametrize("cluster_size", [4 * KIB, 64 * KIB])
@pytest.mark.parametrize("maker", ["qemu", "us"])
@pytest.mark.parametrize("backing", ["none", "raw", "qed"])
async def test_image_changed_in_turn_is_the_same_for_both(
    tmp_path: Path, backing: Backing, maker: str, cluster_size: int
) -> None:
    pair = await new_pair(tmp_path, backing, maker, cluster_size)
    await pair.verify()
    for _ in range(ROUNDS):
        await pair.by_us()
        pair.by_qemu()
        await pair.verify()


async def test_grow_by_us_is_read_by_qemu(tmp_path: Path) -> None:
    pair = await new_pair(tmp_path, "none", "us", 4 * KIB)
    await pair.by_us()
    async with qedasync.open(pair.image, "r+") as image:
        await image.truncate(SIZE + 10 * KIB)
        await image.pwrite(b"end", SIZE + 10 * KIB - 3)
    pair.model += bytes(10 * KIB - 3) + b"end"
    await pair.verify()


async def test_resize_by_qemu_is_read_by_us(tmp_path: Path) -> None:
    pair = await new_pair(tmp_path, "raw", "us", 4 * KIB)
    pair.by_qemu()
    qemu.img("resize", "-q", "-f", "qed", pair.image, f"{SIZE + 10 * KIB}")
    pair.model += bytes(10 * KIB)
    await pair.verify()
    await pair.by_us()
    await pair.verify()


@pytest.mark.parametrize("over", [0x100000, 512])
async def test_grow_overlay_by_us_hides_longer_backing_file_from_qemu(
    tmp_path: Path, over: int
) -> None:
    """QEMU refuses to grow such an overlay; it reads ours right."""
    (tmp_path / "base.raw").write_bytes(b"\xbb" * SIZE)
    old = SIZE - over
    image = tmp_path / "top.qed"
    qemu.create(image, old, cluster_size=4096, table_size=2, backing=("base.raw", "raw"))
    async with qedasync.open(image, "r+") as disk:
        await disk.truncate(SIZE)
    (tmp_path / "model.raw").write_bytes(b"\xbb" * old + bytes(over))
    qemu.compare(image, tmp_path / "model.raw")
