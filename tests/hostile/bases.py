"""Sound images that the hostile ones are made from."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import qedasync
from qedasync.format.header import Header
from qedasync.storage.memory import MemoryStorage, SparseBytes

__all__ = ["Base", "furnish", "make_bases"]

KIB, MIB = 1 << 10, 1 << 20

_SHAPES = {
    "tables of one cluster": (3 * MIB + 512, 4 * KIB, 1),
    "small": (9 * MIB, 4 * KIB, 2),
    "default": (5 << 30, 64 * KIB, 4),
    "2 MiB clusters": (1 << 40, 2 * MIB, 2),
    "8 MiB clusters": (1 << 62, 8 * MIB, 1),
    "16 MiB of L1": (1 << 62, MIB, 16),
}


@dataclass(frozen=True, slots=True)
class Base:
    """A sound image.

    Attributes:
        tables: the file offset of L1, then of the L2 tables.
    """

    name: str
    content: SparseBytes
    header: Header
    tables: tuple[int, ...]

    @classmethod
    def of(cls, name: str, content: SparseBytes) -> Base:
        raw = bytearray(64)
        content.read_into(raw, 0)
        header = Header.parse(raw)
        return cls(name, content, header, (header.l1_table_offset, *_l2_tables(content, header)))

    @property
    def table_bytes(self) -> int:
        return self.header.table_size * self.header.cluster_size

    @property
    def weight(self) -> int:
        """How often it is chosen: large tables cost time, and show nothing else."""
        return 1 if self.table_bytes > MIB else 12

    @property
    def table_entries(self) -> int:
        return self.table_bytes // 8


def _l2_tables(content: SparseBytes, header: Header) -> Iterator[int]:
    start, end = header.l1_table_offset, header.l1_table_offset + 4096
    while (start := content.next_data(start)) < end:
        raw = bytearray(min(4096, end - start))
        content.read_into(raw, start)
        yield from (offset for (offset,) in struct.iter_unpack("<Q", raw) if offset)
        start += len(raw)


def furnish(folder: Path) -> Path:
    """Fill ``folder`` with what backing names point at; answers the directory for the images.

    Everything outside of that directory is none of an image's business.
    """
    images = folder / "images"
    (images / "below").mkdir(parents=True)
    for place in (folder, images, images / "below"):
        (place / "base.raw").write_bytes(bytes(range(256)) * 64)
    (images / "link.raw").symlink_to(folder / "base.raw")
    (images / "near.raw").symlink_to("base.raw")
    (images / "endless").symlink_to("endless")
    os.mkfifo(images / "pipe")
    return images


async def make_bases(images: Path) -> list[Base]:
    """One image of each shape, an overlay, one that was not closed; QEMU's own, if it is here."""
    bases = []
    for name, (size, cluster_size, table_size) in _SHAPES.items():
        storage = MemoryStorage()
        await qedasync.create(
            images / "x.qed",
            size,
            cluster_size=cluster_size,
            table_size=table_size,
            force_table_size_1=True,
            storage=storage,
        )
        bases.append(Base.of(name, await _write_some(storage, images)))
    overlay = MemoryStorage()
    await qedasync.create(
        images / "x.qed", 5 * MIB, cluster_size=4096, backing_file="base.raw", storage=overlay
    )
    bases.append(Base.of("overlay", await _write_some(overlay, images)))
    dirty = bases[1].content.copy()
    dirty.write(b"\x02", 16)
    bases.append(Base.of("not closed", dirty))
    bases += _made_by_qemu(images)
    return bases


async def _write_some(storage: MemoryStorage, images: Path) -> SparseBytes:
    """Scattered data and zeroes, in two tables at least where the image has two."""
    content = storage.content
    async with qedasync.open(images / "x.qed", "r+", storage=_Kept(storage)) as disk:
        cluster = disk.cluster_size
        half = disk.size // 2 // cluster * cluster
        for pos in (0, 5 * cluster + 100, half, disk.size - 700):
            await disk.pwrite(b"<data>" * 100, pos)
        await disk.write_zeroes(3 * cluster, half + 8 * cluster)
    return content


class _Kept(MemoryStorage):
    """Serves another one's content, and may be closed without it."""

    def __init__(self, storage: MemoryStorage) -> None:
        super().__init__(storage.content)


def _made_by_qemu(images: Path) -> list[Base]:
    tool, io = shutil.which("qemu-img"), shutil.which("qemu-io")
    if tool is None or io is None:
        return []
    path = images / "qemu.qed"
    options = "cluster_size=4096,table_size=2"
    subprocess.run([tool, "create", "-q", "-f", "qed", "-o", options, path, "20M"], check=True)
    write = ["-c", "write -P 7 0 70k", "-c", "write -P 8 9M 9000", "-c", "write -z 12M 64k"]
    subprocess.run([io, "-f", "qed", *write, path], check=True, stdout=subprocess.DEVNULL)
    content = SparseBytes(path.read_bytes())
    path.unlink()
    return [Base.of("made by QEMU", content)]
