"""Small images on storages of one's own, opened at the engine's level, and a backing file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from qedasync.engine.core import Engine, EngineOptions
from qedasync.engine.extents import Extent, ExtentKind
from qedasync.engine.source import Source
from qedasync.format.table import unpack_entries
from qedasync.storage.base import ReadBuffers, Storage
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import (
    Change,
    FlushRecord,
    GrowRecord,
    RecorderStorage,
)
from tests.helpers.model import blank

__all__ = [
    "CLUSTER",
    "SPAN",
    "Bytes",
    "ManualClock",
    "image",
    "l1_entries",
    "opened",
    "slice_entries",
    "steps",
    "turns",
]

CLUSTER = 4096
SPAN = 512 * CLUSTER
"""Guest bytes of a slice; with ``table_size`` 1 also of an L2 table."""

L1 = CLUSTER
"""File offset of L1."""


def image(
    size: int = 2 * SPAN,
    *,
    table_size: int = 1,
    l1: dict[int, int] | None = None,
    l2: dict[int, dict[int, int]] | None = None,
    clusters: int = 0,
    need_check: bool = False,
) -> bytes:
    """An image with chosen entries.

    Args:
        l1: L1 entries by index.
        l2: by file offset of a table, its entries by index.
        clusters: length of the file; 0 for an empty image's.
    """
    content = bytearray(blank(size, CLUSTER, table_size))
    content.extend(bytes(max(0, clusters * CLUSTER - len(content))))
    if need_check:
        content[16] |= 2
    for offset, entries in {L1: l1 or {}, **(l2 or {})}.items():
        for index, value in entries.items():
            at = offset + 8 * index
            content[at : at + 8] = value.to_bytes(8, "little")
    return bytes(content)


@asynccontextmanager
async def opened(
    storage: Storage | bytes, *, backing: Source | None = None, **options: Any
) -> AsyncIterator[Engine]:
    """An engine, writable unless told otherwise; closed at the end, if the test has not."""
    if isinstance(storage, bytes):
        storage = MemoryStorage(storage)
    options.setdefault("writable", True)
    engine = await Engine.open(storage, EngineOptions(**options), "disk.qed")
    engine.attach(backing)
    try:
        yield engine
    finally:
        if not engine.closed:
            await engine.close()


class Bytes:
    """A backing file that is some bytes.

    Args:
        inline: whether a read completes at once; else it takes a turn of the loop.
    """

    def __init__(self, content: bytes, *, inline: bool = True) -> None:
        self.content = content
        self.size = len(content)
        self.reads: list[tuple[int, int]] = []
        self.closed = False
        self._inline = inline

    def try_read_into(self, buffers: ReadBuffers, pos: int) -> bool:
        if self._inline:
            self._fill(buffers, pos)
        return self._inline

    def try_read_one(self, length: int, pos: int) -> bytearray | None:
        data = bytearray(length)
        inside = self._inline and pos + length <= self.size
        return data if inside and self.try_read_into([data], pos) else None

    async def read_into(self, buffers: ReadBuffers, pos: int) -> None:
        await asyncio.sleep(0)
        self._fill(buffers, pos)

    def _fill(self, buffers: ReadBuffers, pos: int) -> None:
        length = sum(map(len, buffers))
        assert 0 < length <= self.size - pos, "the engine reads below the size only"
        self.reads.append((pos, length))
        for buffer in buffers:
            buffer[:] = self.content[pos : pos + len(buffer)]
            pos += len(buffer)

    async def block_status(self, pos: int, length: int) -> list[Extent]:
        return [Extent(pos, length, ExtentKind.DATA, False, offset=pos, path="base.raw")]

    async def close(self) -> None:
        self.closed = True


class ManualClock:
    """Time that moves when the test says so.

    Attributes:
        now: seconds.
        sleeping: how many wait.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    @property
    def sleeping(self) -> int:
        return sum(not waiter.done() for _, waiter in self._sleepers)

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, waiter))
        await waiter

    async def advance(self, seconds: float) -> None:
        """Move on, and let whoever wakes run until it waits again."""
        self.now += seconds
        for until, waiter in self._sleepers:
            if until <= self.now and not waiter.done():
                waiter.set_result(None)
        await turns(20)


async def turns(count: int = 5) -> None:
    """Give the loop some turns."""
    for _ in range(count):
        await asyncio.sleep(0)


def steps(storage: RecorderStorage, start: int = 0) -> list[str]:
    """What was done to the file from the ``start``-th record on, as names of events.

    A flush is ``"flush"``, growth ``"grow"``; neighbours of one name are one.
    """
    names: list[str] = []
    for record in storage.log[start:]:
        name = ""
        if isinstance(record, FlushRecord):
            name = "flush"
        elif isinstance(record, GrowRecord):
            name = "grow"
        elif isinstance(record, Change):
            name = record.event.value
        if name and names[-1:] != [name]:
            names.append(name)
    return names


async def read_bytes(storage: Storage, offset: int, length: int) -> bytes:
    """Bytes of the file."""
    buffer = bytearray(length)
    await storage.read_into([buffer], offset)
    return bytes(buffer)


async def l1_entries(storage: Storage, count: int = 8) -> list[int]:
    """The first entries of L1 on disk."""
    return list(unpack_entries(await read_bytes(storage, L1, 8 * count)))


async def slice_entries(storage: Storage, offset: int, count: int = 8) -> list[int]:
    """Entries on disk from a file offset on."""
    return list(unpack_entries(await read_bytes(storage, offset, 8 * count)))
