"""Small chains in memory: an image, a file below it, and one it may be put on instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from qedasync.disk import Disk
from qedasync.format.header import (
    HEADER_BYTES,
    Header,
    decode_backing_name,
    encode_backing_name,
    new_header,
)
from qedasync.image import Image, open_image
from qedasync.raw import open_raw
from qedasync.storage.base import Storage
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage, SparseBytes

__all__ = [
    "CASES",
    "CLUSTER",
    "COMMITS",
    "REBASES",
    "SECTOR",
    "Below",
    "Case",
    "Files",
    "header_of",
    "image_file",
    "jittery",
    "make",
    "open_stack",
    "read_all",
    "read_back",
    "run_job",
]

CLUSTER = 4096
SECTOR = 512
SIZE = 24 * CLUSTER
ODD = SIZE - CLUSTER - 512
"""Guest bytes of images that end inside a cluster."""

Files = dict[str, SparseBytes]
"""The files of a chain: ``"top"``, ``"base"`` and ``"new"``, which are their names too."""


@dataclass(frozen=True)
class Below:
    """A file below an image.

    Attributes:
        size: guest bytes.
        raw: else it is an image.
        cluster: of that, in bytes.
        other: whether it has other content than a base of the same size.
    """

    size: int = SIZE
    raw: bool = True
    cluster: int = CLUSTER
    other: bool = False

    def content(self) -> bytes:
        """What its guest reads: per cluster data, zeroes, or data for a few sectors."""
        data = bytearray(self.size)
        for number in range(-(-self.size // CLUSTER)):
            value = number + 1
            if self.other and number % 3:
                value = 0 if number % 3 == 1 else 0x80 | number
            if not self.other and number % 5 == 4:
                value = 0
            pos = number * CLUSTER
            stop = pos + (1024 if number % 7 == 6 else CLUSTER)
            data[pos:stop] = bytes([value]) * (min(stop, self.size) - pos)
        return bytes(data)


@dataclass(frozen=True)
class Case:
    """A job and the files it begins with.

    Attributes:
        job: which; ``"keep"`` is a commit that does not empty the image.
        base: what the image stands on.
        new: what it is to stand on.
        blank: whether the image holds nothing yet.
    """

    name: str
    job: Literal["rebase", "commit", "keep"]
    base: Below | None = field(default_factory=Below)
    new: Below | None = None
    size: int = SIZE
    blank: bool = False

    def below(self, name: str) -> Below | None:
        return {"base": self.base, "new": self.new}.get(name)


REBASES = [
    Case("rebase", "rebase", new=Below(other=True)),
    Case("rebase-blank", "rebase", new=Below(other=True), blank=True),
    Case("rebase-to-shorter", "rebase", new=Below(9 * CLUSTER + 512, other=True)),
    Case("rebase-from-shorter", "rebase", Below(7 * CLUSTER + 1024), Below(other=True)),
    Case("rebase-odd-to-longer", "rebase", Below(ODD), Below(2 * SIZE, other=True), ODD),
    Case("rebase-to-qed", "rebase", new=Below(raw=False, cluster=4 * CLUSTER, other=True)),
    Case("rebase-from-qed", "rebase", Below(raw=False), Below(other=True)),
    Case("rebase-from-nothing", "rebase", None, Below(other=True)),
    Case("rebase-to-the-same", "rebase", new=Below()),
    Case("flatten", "rebase"),
    Case("flatten-qed", "rebase", Below(raw=False, cluster=2 * CLUSTER), size=ODD),
]

COMMITS = [
    Case("commit-to-raw", "commit"),
    Case("commit-to-shorter-raw", "commit", Below(5 * CLUSTER + 512)),
    Case("commit-to-longer-raw", "commit", Below(2 * SIZE), size=ODD),
    Case("commit-to-qed", "commit", Below(raw=False)),
    Case("commit-to-large-clusters", "commit", Below(9 * CLUSTER, raw=False, cluster=8 * CLUSTER)),
    Case("commit-to-longer-qed", "commit", Below(2 * SIZE, raw=False), size=ODD),
    Case("commit-of-nothing", "commit", blank=True),
    Case("commit-and-keep", "keep", Below(raw=False)),
]

CASES = [*REBASES, *COMMITS]


def image_file(size: int, cluster: int, name: str = "", *, raw: bool = False) -> SparseBytes:
    """An empty image."""
    header = new_header(size, cluster, 2, name or None, raw)
    content = SparseBytes(header.pack() + encode_backing_name(name))
    content.resize(3 * cluster)
    return content


async def make(case: Case) -> tuple[Files, bytes]:
    """The files of a case, and what the image's guest reads."""
    base = case.base
    files = {
        "top": image_file(
            case.size, CLUSTER, "base" if base else "", raw=base is not None and base.raw
        )
    }
    for name in ("base", "new"):
        below = case.below(name)
        if below is not None:
            files[name] = await _make_below(below)
    expected = (base.content() if base else b"")[: case.size].ljust(case.size, b"\0")
    if not case.blank:
        expected = await _fill_top(case, files, bytearray(expected))
    return files, bytes(expected)


async def _make_below(below: Below) -> SparseBytes:
    if below.raw:
        return SparseBytes(below.content())
    storage = MemoryStorage(image_file(below.size, below.cluster))
    async with open_image("below", "r+", storage=storage, need_check_timeout=0) as disk:
        data = below.content()
        for pos in range(0, below.size, CLUSTER):
            part = data[pos : pos + CLUSTER]
            if any(part):
                await disk.pwrite(part, pos)
    return storage.content


async def _fill_top(case: Case, files: Files, expected: bytearray) -> bytes:
    """Data over clusters 2 and 3 and a part of 9, zeroes over 4, 10 and 11, and the last one."""
    storages = {name: MemoryStorage(content) for name, content in files.items()}
    disk = await open_stack(case, storages, base_mode="r")
    async with disk:
        for pos, length in ((2 * CLUSTER + 512, CLUSTER), (9 * CLUSTER + 1024, 512)):
            data = Random(pos).randbytes(length)
            await disk.pwrite(data, pos)
            expected[pos : pos + length] = data
        for cluster, n in ((4, 1), (10, 2)):
            await disk.write_zeroes(n * CLUSTER, cluster * CLUSTER)
            expected[cluster * CLUSTER : (cluster + n) * CLUSTER] = bytes(n * CLUSTER)
        await disk.pwrite(b"end" * 100, case.size - 300)
        expected[-300:] = b"end" * 100
    return bytes(expected)


# ------------------------------------------------------------------- chains in use


async def open_below(below: Below, storage: Storage, mode: Literal["r", "r+"]) -> Disk:
    """A file below, as a disk."""
    if below.raw:
        return await open_raw("below", mode, storage=storage)
    return await open_image("below", mode, storage=storage, need_check_timeout=0)


async def open_stack(
    case: Case,
    storages: Mapping[str, Storage],
    *,
    base: str | None = "base",
    base_mode: Literal["r", "r+"] = "r+",
    mode: Literal["r", "r+"] = "r+",
    **options: Any,
) -> Image:
    """The image on the file called ``base``; without one if there is none."""
    below = case.below(base) if base else None
    backing: Disk | Literal[False] = False
    if base is not None and below is not None:
        backing = await open_below(below, storages[base], base_mode)
    options = {"need_check_timeout": 0, **options}
    return await open_image("top", mode, storage=storages["top"], backing=backing, **options)


async def run_job(
    case: Case,
    disk: Image,
    storages: Mapping[str, Storage],
    *,
    tasks: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Do what the case is about."""
    if case.job != "rebase":
        await disk.commit(empty=case.job == "commit", tasks=tasks, progress=progress)
    elif case.new is None:
        await disk.stream(progress, tasks=tasks)
    else:
        new = await open_below(case.new, storages["new"], "r")
        kind: Literal["raw", "qed"] = "raw" if case.new.raw else "qed"
        await disk.rebase("new", format=kind, backing=new, tasks=tasks, progress=progress)


def header_of(content: SparseBytes) -> tuple[Header, str | None]:
    """The header in a file, and the name it records."""
    head = bytearray(HEADER_BYTES)
    content.read_into(head, 0)
    header = Header.parse(head)
    name = bytearray(header.backing_filename_size)
    content.read_into(name, header.backing_filename_offset)
    return header, decode_backing_name(bytes(name)) if header.has_backing else None


async def read_all(disk: Disk) -> bytes:
    return bytes(await disk.pread(disk.size, 0))


async def read_back(case: Case, files: Files, mode: Literal["r", "r+"] = "r") -> bytes:
    """What somebody reads who opens the files later, by the name that is recorded; all is sound."""
    copies = {name: MemoryStorage(content.copy()) for name, content in files.items()}
    name = header_of(files["top"])[1]
    async with await open_stack(case, copies, base=name, base_mode="r", mode=mode) as disk:
        result = await disk.check()
        assert not result.corruptions, result
        assert not result.check_errors, result
        return await read_all(disk)


def jittery(content: SparseBytes, rng: Random) -> FaultStorage:
    """A storage whose every call takes a few turns of the loop, by chance."""

    async def some_turns(_: float) -> None:
        for _ in range(rng.randint(0, 4)):
            await asyncio.sleep(0)

    slow = Fault("delay", seconds=0, once=False)
    return FaultStorage(MemoryStorage(content, inline=False), slow, sleep=some_turns)
