"""Disks to copy from and to: files of data and holes, chains of overlays, and ones that fail."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import qedasync
from qedasync import Disk
from qedasync.storage.host_file import HostFile

KIB, MIB = 1 << 10, 1 << 20


def patchwork(size: int, seed: int, *, block: int = 4 * KIB) -> bytes:
    """Runs of random bytes and of zeroes, most of whole blocks."""
    random = Random(seed)
    content = bytearray()
    while len(content) < size:
        length = random.choice([1, 1, 2, 5, 40, 130]) * block + random.choice([0, 0, 0, 700])
        content += random.choice([bytes(length), random.randbytes(length)])
    return bytes(content[:size])


def write_sparse(path: Path, content: bytes, *, block: int = 4 * KIB) -> None:
    """A file of that content with holes where blocks are zeroes, but for every fifth of them."""
    with path.open("wb") as file:
        file.truncate(len(content))
        for number, pos in enumerate(range(0, len(content), block)):
            part = content[pos : pos + block]
            if any(part) or number % 5 == 0:
                file.seek(pos)
                file.write(part)


async def content_of(path: Path, **options: Any) -> bytes:
    """What an image reads as."""
    async with qedasync.open(path, **options) as image:
        return bytes(await image.pread(image.size, 0))


async def write_runs(image: Disk, runs: Iterable[tuple[int, bytes]]) -> None:
    for pos, data in runs:
        await image.pwrite(data, pos)


async def chain(folder: Path) -> Path:
    """Three overlays on a raw file of odd length, each with data, zeroes and nothing of its own."""
    random = Random(3)
    (folder / "base.raw").write_bytes(patchwork(700 * KIB + 333, 9))
    below, fmt = "base.raw", "raw"
    for number, size in enumerate((900 * KIB, 600 * KIB + 512, 1200 * KIB)):
        name = f"{number}.qed"
        await qedasync.create(
            folder / name,
            size,
            cluster_size=[4096, 65536, 4096][number],
            table_size=2,
            backing_file=below,
            backing_format=fmt,  # type: ignore[arg-type]
        )
        async with qedasync.open(folder / name, "r+") as image:
            for _ in range(6):
                pos = random.randrange(size - 60 * KIB)
                await image.pwrite(random.randbytes(random.randrange(1, 50 * KIB)), pos)
                await image.write_zeroes(30 * KIB, random.randrange(size - 30 * KIB))
        below, fmt = name, "qed"
    return folder / below


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


class Broken:
    """A host file whose transfers fail from the ``good``-th on; the disk itself is sound."""

    def __init__(self, file: HostFile, good: int) -> None:
        self._file = file
        self._left = good

    def _take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.EIO, "broken on purpose")

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> None:
        self._take()
        self._file.read_into(buffers, offset)

    def write(self, buffers: Sequence[memoryview], offset: int) -> None:
        self._take()
        self._file.write(buffers, offset)

    def reserve(self, offset: int, length: int) -> None:
        self._file.reserve(offset, length)

    def release(self, offset: int, length: int) -> None:
        self._file.release(offset, length)


class Lender:
    """A disk that lends a :class:`Broken` file; all else goes to the disk."""

    def __init__(self, disk: Disk, good: int) -> None:
        self._disk = disk
        self._good = good

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    @asynccontextmanager
    async def lent(self, **options: Any) -> AsyncIterator[Broken]:
        async with self._disk.lent(**options) as file:  # type: ignore[attr-defined]
            yield Broken(file, self._good)
