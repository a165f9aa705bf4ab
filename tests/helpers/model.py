"""A disk in a bytearray, and batches of concurrent requests to compare an image with it.

Every byte of a request's data is random, so a byte that is in the wrong place, old or torn shows.
Where writes of one batch overlap, a byte may end as any of the written values; what it did end as
is read once and holds from then on.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from qedasync.engine.extents import ExtentKind
from qedasync.events import Event
from qedasync.image import Image
from qedasync.storage.base import ReadBuffers, Storage, StorageBase, WriteBuffers
from qedasync.storage.memory import MemoryStorage

__all__ = [
    "DirtyGrowth",
    "Jitter",
    "Kind",
    "Model",
    "Op",
    "Shape",
    "blank",
    "random_ops",
]

SECTOR = 512
_HEADER = struct.Struct("<4sIIIQQQQQII")


def blank(
    size: int, cluster_size: int, table_size: int, backing: str = "", *, raw: bool = False
) -> bytes:
    """An empty image, packed by hand: of one table cluster too, which nothing else creates."""
    name = backing.encode()
    features = (1 | (4 if raw else 0)) if name else 0
    place = 64 if name else 0
    header = _HEADER.pack(
        b"QED\0",
        cluster_size,
        table_size,
        1,
        features,
        0,
        0,
        cluster_size,
        size,
        place,
        len(name),
    )
    return (header + name).ljust((1 + table_size) * cluster_size, b"\0")


# --------------------------------------------------------------------- requests


class Kind(StrEnum):
    """What a request does."""

    PREAD = "pread"
    READINTO = "readinto"
    PREADV = "preadv"
    PWRITE = "pwrite"
    PWRITEV = "pwritev"
    ZEROES = "write_zeroes"
    DISCARD = "discard"
    FLUSH = "flush"
    STATUS = "block_status"


READS = (Kind.PREAD, Kind.READINTO, Kind.PREADV)
WRITES = (Kind.PWRITE, Kind.PWRITEV)


@dataclass(frozen=True, slots=True)
class Op:
    """A request.

    Attributes:
        pos, length: the guest bytes.
        seed: what the data is made from.
        cuts: where ``pwritev`` and ``preadv`` divide the bytes.
    """

    kind: Kind
    pos: int
    length: int
    seed: int = 0
    cuts: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.pos + self.length

    @property
    def data(self) -> bytes:
        """What it writes; zeroes for ``write_zeroes`` and ``discard``."""
        if self.kind in WRITES:
            return random.Random(self.seed).randbytes(self.length)
        return bytes(self.length)

    def lengths(self) -> Iterator[int]:
        """Of the buffers it is divided into."""
        points = [0, *sorted(min(cut, self.length) for cut in self.cuts), self.length]
        return (stop - start for start, stop in pairwise(points))


@dataclass(frozen=True, slots=True)
class Shape:
    """An image's geometry, and where requests are most interesting."""

    cluster_size: int
    table_size: int
    size: int

    @property
    def hot(self) -> list[int]:
        """Borders of tables, of slices and of the image, and the first clusters."""
        slice_span = 512 * self.cluster_size
        table_span = self.table_size * self.cluster_size // 8 * self.cluster_size
        points = {0, 8 * self.cluster_size, self.size}
        points |= {*range(0, self.size, slice_span), *range(0, self.size, table_span)}
        return sorted(points)

    def op(self, kind: Kind, hot: int, delta: int, length: int, seed: int, cuts: int) -> Op:
        """A request near the ``hot``-th point, cut to what is inside the image."""
        points = self.hot
        pos = min(max(points[hot % len(points)] + delta, 0), self.size)
        length = min(length, self.size - pos)
        rng = random.Random(cuts)
        return Op(kind, pos, length, seed, tuple(rng.randint(0, length) for _ in range(cuts % 4)))


def random_ops(rng: random.Random, shape: Shape, count: int) -> list[Op]:
    """Requests of all kinds, small and large, around the hot points."""
    reach = 3 * shape.cluster_size
    kinds = [*Kind, *WRITES, *WRITES]
    return [
        shape.op(
            rng.choice(kinds),
            rng.randrange(16),
            rng.choice((0, rng.randint(-reach, reach), rng.randint(-40, 40))),
            rng.choice((rng.randint(0, 600), shape.cluster_size, rng.randint(0, 2 * reach))),
            rng.randrange(1 << 30),
            rng.randrange(1 << 30),
        )
        for _ in range(count)
    ]


# ------------------------------------------------------------------------ model


class Model:
    """What must be on a disk.

    Attributes:
        content: the guest bytes, as of the last batch.
        counts: requests made, by kind; those of length 0 are not counted.
    """

    def __init__(self, content: bytes | bytearray) -> None:
        self.content = bytearray(content)
        self.counts = dict.fromkeys(Kind, 0)

    async def run(self, disk: Image, ops: Sequence[Op], grow_to: int = 0) -> None:
        """Do all of ``ops`` at once, and compare what was read, then what is there.

        Args:
            grow_to: also make the image larger meanwhile; 0 for not.
        """
        work = [self._do(disk, op, ops) for op in ops]
        if grow_to:
            work.append(disk.truncate(grow_to))
        await asyncio.gather(*work)
        if grow_to:
            self.content += bytes(grow_to - len(self.content))
        for start, end in _ranges(ops):
            actual = await disk.pread(end - start, start)
            self._compare(start, actual, ops, during=False)
            self.content[start:end] = actual

    async def _do(self, disk: Image, op: Op, batch: Sequence[Op]) -> None:
        if op.length or op.kind is Kind.FLUSH:
            self.counts[op.kind] += 1
        if op.kind in READS:
            self._compare(op.pos, await _read(disk, op), batch, during=True)
        elif op.kind in WRITES:
            await _write(disk, op)
            # It has returned: from here on nobody sees what was there before.
            again = await disk.pread(op.length, op.pos)
            self._compare(op.pos, again, batch, during=False)
        elif op.kind is Kind.ZEROES:
            await disk.write_zeroes(op.length, op.pos)
        elif op.kind is Kind.DISCARD:
            await disk.discard(op.length, op.pos)
        elif op.kind is Kind.STATUS:
            extents = await disk.block_status(op.pos, op.length)
            assert sum(extent.length for extent in extents) == op.length
        else:
            await disk.flush()

    def _compare(
        self, pos: int, actual: bytes | bytearray, ops: Iterable[Op], during: bool
    ) -> None:
        """Each byte must be one that some request put there, or the old one.

        Args:
            during: whether a write may not have begun yet, so that old bytes are right too.
        """
        ops = [op for op in ops if op.length and op.kind not in (*READS, Kind.FLUSH, Kind.STATUS)]
        end = pos + len(actual)
        points = {pos, end, *(p for op in ops for p in (op.pos, op.end) if pos < p < end)}
        borders = sorted(points)
        layers = [(op, op.data) for op in ops if op.pos < end and pos < op.end]
        for start, stop in pairwise(borders):
            over = [(op, data) for op, data in layers if op.pos <= start and stop <= op.end]
            choices = [data[start - op.pos : stop - op.pos] for op, data in over]
            if during or all(op.kind is Kind.DISCARD for op, _ in over):
                choices.append(bytes(self.content[start:stop]))
            found = bytes(actual[start - pos : stop - pos])
            if found not in choices:
                for i, byte in enumerate(found):
                    seen = {choice[i] for choice in choices}
                    assert byte in seen, f"byte {start + i} is {byte:#x}, not one of {seen}"

    # ------------------------------------------------------------- everything

    async def check(self, disk: Image, storage: Storage | None = None) -> None:
        """All of the image: content, mapping, metadata and counters.

        Args:
            storage: what the image lies in, to look whether data is where the mapping says.
        """
        assert disk.size == len(self.content)
        await self._check_content(disk)
        await self._check_mapping(disk, storage)
        await _check_metadata(disk)

    async def _check_content(self, disk: Image) -> None:
        step = 3 * 333_333
        for start in range(0, disk.size, step):
            length = min(step, disk.size - start)
            actual = await disk.pread(length, start)
            assert actual == self.content[start : start + length], f"differs after {start}"

    async def _check_mapping(self, disk: Image, storage: Storage | None) -> None:
        at = 0
        async for extent in disk.extents():
            assert extent.start == at
            assert extent.length > 0
            at = extent.end
            want = self.content[extent.start : at]
            if extent.zero:
                assert want == bytes(extent.length), extent
            if extent.kind is ExtentKind.DATA:
                assert extent.path == disk.path
                if storage is not None and extent.offset is not None:
                    there = bytearray(extent.length)
                    await storage.read_into([there], extent.offset)
                    assert there == want, extent
        assert at == disk.size

    def check_stats(self, disk: Image) -> None:
        """The counters agree with what was asked since this image was opened."""
        stats = disk.stats
        assert stats.writes == sum(self.counts[kind] for kind in WRITES)
        assert stats.zero_writes == self.counts[Kind.ZEROES] + self.counts[Kind.DISCARD]
        assert stats.flushes == self.counts[Kind.FLUSH]
        assert stats.grouped_writes >= stats.groups >= 0
        assert (stats.clusters_allocated > 0) <= (stats.groups > 0)


async def _check_metadata(disk: Image) -> None:
    result = await disk.check()
    assert result.corruptions == 0, result
    assert result.check_errors == 0, result
    assert result.leaks == 0, result


def _ranges(ops: Iterable[Op]) -> Iterator[tuple[int, int]]:
    """The ranges that ``ops`` touch, those that meet joined."""
    start = end = -1
    for op in sorted(ops, key=lambda op: op.pos):
        if op.pos > end:
            if end > start:
                yield start, end
            start = op.pos
            end = op.end
        end = max(end, op.end)
    if end > start:
        yield start, end


async def _read(disk: Image, op: Op) -> bytes | bytearray:
    if op.kind is Kind.PREAD:
        return await disk.pread(op.length, op.pos)
    if op.kind is Kind.READINTO:
        buffer = bytearray(b"\xee" * op.length)
        assert await disk.readinto(buffer, op.pos) == op.length
        return buffer
    buffers = [bytearray(b"\xee" * length) for length in op.lengths()]
    assert await disk.preadv(buffers, op.pos) == op.length
    return b"".join(buffers)


async def _write(disk: Image, op: Op) -> None:
    if op.kind is Kind.PWRITE:
        assert await disk.pwrite(op.data, op.pos) == op.length
        return
    data, buffers, start = op.data, [], 0
    for length in op.lengths():
        buffers.append(data[start : start + length])
        start += length
    assert await disk.pwritev(buffers, op.pos) == op.length


# --------------------------------------------------------------------- storages


class DirtyGrowth(MemoryStorage):
    """A file whose growth holds garbage, as a storage without ``zero_fills`` may."""

    zero_fills = False

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        old = self.size
        await super().truncate(size, event)
        if size > old:
            self.content.write(b"\xa5" * (size - old), old)

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        if offset > self.size:
            await self.truncate(offset)
        await super().write(buffers, offset, event)

    write_many = StorageBase.write_many


class Jitter(StorageBase):
    """A storage in which every step takes its own, random number of turns.

    Each write of a list is a step of its own, so whatever can come between two steps does.
    """

    def __init__(self, inner: Storage, seed: int) -> None:
        self.inner = inner
        self.zero_fills = inner.zero_fills
        self._rng = random.Random(seed)

    @property
    def size(self) -> int:
        return self.inner.size

    def try_read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> bool:
        return self._rng.random() < 0.5 and self.inner.try_read_into(buffers, offset, event)

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        await self._some_turns()
        await self.inner.read_into(buffers, offset, event)
        await self._some_turns()

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        await self._some_turns()
        await self.inner.write(buffers, offset, event)
        await self._some_turns()

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        await self._some_turns()
        await self.inner.write_zeroes(offset, length, event)
        await self._some_turns()

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        await self._some_turns()
        await self.inner.flush(event)

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        await self._some_turns()
        await self.inner.truncate(size, event)

    async def next_data(self, offset: int) -> int:
        return await self.inner.next_data(offset)

    async def close(self) -> None:
        await self.inner.close()

    async def _some_turns(self) -> None:
        for _ in range(self._rng.choice((0, 0, 1, 2, 5))):
            await asyncio.sleep(0)
