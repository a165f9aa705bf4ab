"""A guest: uses a disk, remembers what must be on it, and takes errors as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from qedasync.engine.core import Engine, EngineOptions
from qedasync.engine.source import Source
from qedasync.engine.sources import ImageSource, RawSource
from qedasync.errors import QEDError
from qedasync.format.header import encode_backing_name, new_header
from qedasync.image import Image, open_image
from qedasync.storage.base import Storage
from qedasync.storage.faults import FaultStorage
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.faults.model import GRAIN, Change, Model

__all__ = [
    "CLUSTER",
    "SPAN",
    "Guest",
    "Layer",
    "ManualClock",
    "backing_value",
    "blank",
    "raw_backing",
    "suspending",
]

CLUSTER = 4096
SPAN = 512 * CLUSTER
"""Bytes that hang on one L2 table of one cluster."""


def blank(size: int, *, backing: str = "", raw: bool = False) -> SparseBytes:
    """An empty image of small clusters and tables of one cluster, so that little fills much."""
    header = new_header(size, CLUSTER, 1, backing or None, raw)
    content = SparseBytes(header.pack() + encode_backing_name(backing))
    content.resize(2 * CLUSTER)
    return content


def backing_value(pos: int) -> int:
    """The value of a grain of the raw backing file: says which cluster it is."""
    return 0x80 | pos // CLUSTER & 0x7F


def raw_backing(size: int) -> SparseBytes:
    """A raw backing file of such grains."""
    content = SparseBytes()
    for pos in range(0, size, GRAIN):
        content.write(bytes([backing_value(pos)]) * min(GRAIN, size - pos), pos)
    return content


def suspending(content: SparseBytes) -> FaultStorage:
    """A storage whose every call is counted and gives the loop a turn before it acts."""
    return FaultStorage(MemoryStorage(content, inline=False))


class ManualClock:
    """Time that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    @property
    def sleepers(self) -> int:
        """How many wait for time to pass."""
        return sum(not future.done() for _, future in self._sleepers)

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, future))
        await future

    def advance(self, seconds: float) -> None:
        """Let time pass and wake whose time has come."""
        self.now += seconds
        for when, future in self._sleepers:
            if when <= self.now and not future.done():
                future.set_result(None)


@dataclass
class Layer:
    """One file of a chain.

    Attributes:
        storage: where it is, faults and all.
        raw: whether it is a raw backing file.
    """

    storage: Storage
    raw: bool = False


async def source_of(layers: list[Layer]) -> Source | None:
    """What lies below an image: the first of ``layers``, with the rest below it."""
    if not layers:
        return None
    layer, *rest = layers
    if layer.raw:
        return RawSource(layer.storage, "base.raw")
    engine = await Engine.open(layer.storage, EngineOptions(), "base.qed")
    engine.attach(await source_of(rest))
    return ImageSource(engine, "base.qed")


@dataclass
class Guest:
    """A user of one disk.

    Its methods take errors as a guest's would: they go to ``errors``, and life goes on.

    Attributes:
        model: what the disk may hold.
        layers: the image, and what is below it.
        options: for ``qedasync.open``.
        sizes: what the disk's size may be.
        errors: what failed, in order.
        clock: the disk's time.
        image: the open disk, or None.
        last_value: of the last write; each writes another one, up to 127.
    """

    model: Model
    layers: list[Layer]
    options: dict[str, Any] = field(default_factory=dict)
    sizes: set[int] = field(default_factory=set)
    errors: list[QEDError] = field(default_factory=list)
    clock: ManualClock = field(default_factory=ManualClock)
    image: Image | None = None
    last_value: int = 0

    @property
    def disk(self) -> Image:
        assert self.image is not None, "the disk is not open"
        return self.image

    # ------------------------------------------------------------- life cycle

    async def open(self) -> None:
        """Open the disk; stays closed if that fails."""
        await self._take(self._open())

    async def _open(self) -> None:
        source = await source_of(self.layers[1:])
        options = {"need_check_timeout": 0, **self.options}
        try:
            image = await open_image(
                "disk.qed",
                "r+",
                storage=self.layers[0].storage,
                backing=False,
                clock=self.clock,
                **options,
            )
        except BaseException:
            if source is not None:
                await source.close()
            raise
        image._engine.attach(source)
        self.image = image
        self.sizes.add(image.size)

    async def close(self) -> None:
        """Close the disk; it counts as closed even if that fails."""
        if self.image is not None:
            image, self.image = self.image, None
            await self._take(image.close())

    async def _take(self, work: Awaitable[object]) -> bool:
        """Whether ``work`` ended well; an error is noted."""
        try:
            await work
        except QEDError as error:
            self.errors.append(error)
            return False
        return True

    # --------------------------------------------------------------- requests

    async def write(self, pos: int, length: int) -> bool:
        """Write a value of its own; whether that went well."""
        self.last_value = self.last_value % 0x7F + 1
        value = self.last_value
        data = bytes([value]) * length
        return await self._change(Change(pos, length, value), self.disk.pwrite(data, pos))

    async def zero(self, pos: int, length: int) -> bool:
        """Write zeroes."""
        return await self._change(Change(pos, length, 0), self.disk.write_zeroes(length, pos))

    async def discard(self, pos: int, length: int) -> bool:
        """Discard."""
        change = Change(pos, length, 0, may_keep=True)
        return await self._change(change, self.disk.discard(length, pos))

    async def _change(self, change: Change, work: Coroutine[Any, Any, object]) -> bool:
        self.model.begin(change)
        try:
            await work
        except QEDError as error:
            self.model.fail(change)
            self.errors.append(error)
            return False
        except BaseException:
            self.model.fail(change)
            raise
        self.model.succeed(change)
        return True

    async def read(self, pos: int, length: int) -> bool:
        """Read and compare."""
        before = self.model.now(pos, length)
        try:
            data = await self.disk.pread(length, pos)
        except QEDError as error:
            self.errors.append(error)
            return False
        self.model.look(pos, data, before=before)
        return True

    async def flush(self) -> bool:
        """Flush."""
        return await self._take(self.disk.flush())

    async def grow(self, size: int) -> bool:
        """Make the disk larger."""
        self.sizes.add(size)
        if await self._take(self.disk.truncate(size)):
            self.sizes = {size}
            return True
        return False

    async def together(self, *requests: Coroutine[Any, Any, object]) -> None:
        """Several requests at once; all have ended on return."""
        async with asyncio.TaskGroup() as tasks:
            for request in requests:
                tasks.create_task(request)

    # ------------------------------------------------------------- comparison

    async def look_at_everything(self) -> None:
        """Every cluster written, and its neighbours, hold what they may hold."""
        disk = self.disk
        assert disk.size in self.sizes, f"size {disk.size} where {self.sizes} may be"
        touched = {pos // CLUSTER for pos in self.model.touched}
        clusters = touched | {c - 1 for c in touched} | {c + 1 for c in touched} | {0}
        for first, stop in runs(clusters):
            pos, end = max(0, first * CLUSTER), min(stop * CLUSTER, disk.size)
            if pos < end:
                self.model.look(pos, await disk.pread(end - pos, pos), settle=True)


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The numbers as few ranges [first, stop)."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found


Script = Callable[[Guest], Awaitable[None]]
