"""A storage that writes down what was done to the file, and when, so that crashes can be replayed.

Time is a counter: it moves on at the begin and at the end of every call that changes the file or
flushes it, and at every mark. `crash.py` turns the log into what a power loss could have left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from qedasync.events import Event
from qedasync.storage.base import ReadBuffers, Storage, StorageBase, Write, WriteBuffers
from qedasync.storage.faults import sector_count, sector_range
from qedasync.storage.memory import MemoryStorage, SparseBytes

__all__ = [
    "RecorderStorage",
    "Record",
    "Change",
    "WriteRecord",
    "ZeroesRecord",
    "TruncateRecord",
    "GrowRecord",
    "FlushRecord",
    "Mark",
]


@dataclass(slots=True, eq=False, kw_only=True)
class Record:
    """Something that happened.

    Attributes:
        begin: when, on the recorder's counter.
        end: when it returned or raised; None while it is under way.
        failed: whether it raised: how much of it was done is unknown.
    """

    begin: int
    end: int | None = None
    failed: bool = False

    def ended_before(self, time: int) -> bool:
        """Whether it had returned or raised by then."""
        return self.end is not None and self.end < time


@dataclass(slots=True, eq=False, kw_only=True)
class Change(Record):
    """Something that changes the file.

    Attributes:
        event: why.
    """

    event: Event

    @property
    def sectors(self) -> int:
        """How many 512-byte sectors it writes: what a power loss may tear apart."""
        return 0

    def apply(self, content: SparseBytes, torn: int | None = None) -> None:
        """Do it to ``content``.

        Args:
            torn: a mask of the sectors that reach the disk, bit 0 is the first; None for all.
        """
        raise NotImplementedError


@dataclass(slots=True, eq=False, kw_only=True)
class WriteRecord(Change):
    """Attributes: ``offset``, in bytes, and ``data``, a copy."""

    offset: int
    data: bytes

    @property
    def sectors(self) -> int:
        return sector_count(self.offset, len(self.data))

    def apply(self, content: SparseBytes, torn: int | None = None) -> None:
        if torn is None:
            content.write(self.data, self.offset)
            return
        view = memoryview(self.data)
        for start, stop in _kept(self.offset, len(self.data), torn):
            content.write(view[start:stop], self.offset + start)


@dataclass(slots=True, eq=False, kw_only=True)
class ZeroesRecord(Change):
    """Attributes: ``offset`` and ``length``, in bytes."""

    offset: int
    length: int

    @property
    def sectors(self) -> int:
        return sector_count(self.offset, self.length)

    def apply(self, content: SparseBytes, torn: int | None = None) -> None:
        if torn is None:
            content.zero(self.offset, self.length)
            return
        for start, stop in _kept(self.offset, self.length, torn):
            content.zero(self.offset + start, stop - start)


@dataclass(slots=True, eq=False, kw_only=True)
class TruncateRecord(Change):
    """Attributes: ``size``, the new one, in bytes."""

    size: int

    def apply(self, content: SparseBytes, torn: int | None = None) -> None:
        content.resize(self.size)


@dataclass(slots=True, eq=False, kw_only=True)
class GrowRecord(Change):
    """Attributes: ``size``, in bytes, which the file is not shorter than afterwards."""

    size: int

    def apply(self, content: SparseBytes, torn: int | None = None) -> None:
        content.resize(max(self.size, content.size))


@dataclass(slots=True, eq=False, kw_only=True)
class FlushRecord(Record):
    """Makes durable what ended, without failing, before its begin."""


@dataclass(slots=True, eq=False, kw_only=True)
class Mark(Record):
    """A note of the test. Attributes: ``value``, whatever was given."""

    value: object


def _kept(offset: int, length: int, torn: int) -> Iterator[tuple[int, int]]:
    """The byte ranges of a write whose sectors are in the mask, neighbours joined."""
    sector = 0
    while torn:
        skip = (torn & -torn).bit_length() - 1
        torn >>= skip
        run = (~torn & (torn + 1)).bit_length() - 1
        start, stop = sector_range(offset, length, sector + skip, sector + skip + run)
        if start < stop:
            yield start, stop
        torn >>= run
        sector += skip + run


class RecorderStorage(StorageBase):
    """A wrapper that logs every write, truncate and flush on its way to ``inner``.

    Args:
        inner: the storage to wrap; closed with the wrapper.
        base: what is in the file now. May be left out for a file that is empty or in memory;
            :meth:`over` reads any other.

    Attributes:
        base: the content at the start.
        log: what happened since, in the order of ``begin``.
        position: the time: the next number the counter gives.
    """

    def __init__(self, inner: Storage, base: bytes | SparseBytes | None = None) -> None:
        self.inner = inner
        self.zero_fills = inner.zero_fills
        self.base = _content(inner, base)
        self.log: list[Record] = []
        self.position = 0

    @classmethod
    async def over(cls, inner: Storage) -> Self:
        """A recorder for a file that has content already; reads all of its data."""
        base = SparseBytes()
        base.resize(inner.size)
        offset = await inner.next_data(0)
        while offset < inner.size:
            piece = bytearray(min(1 << 20, inner.size - offset))
            await inner.read_into([piece], offset)
            base.write(piece, offset)
            offset = await inner.next_data(offset + len(piece))
        return cls(inner, base)

    def mark(self, value: object = None) -> Mark:
        """Put a note into the log: a crash at a cut above its ``begin`` came after this moment."""
        now = self._tick()
        mark = Mark(begin=now, end=now, value=value)
        self.log.append(mark)
        return mark

    @property
    def size(self) -> int:
        return self.inner.size

    def try_read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> bool:
        return self.inner.try_read_into(buffers, offset, event)

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        await self.inner.read_into(buffers, offset, event)

    async def write(
        self, buffers: WriteBuffers, offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        record = WriteRecord(begin=self._tick(), offset=offset, data=b"".join(buffers), event=event)
        with self._recorded(record):
            await self.inner.write(buffers, offset, event)

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        records: list[Change] = []
        if grow_to > self.size:
            grow = GrowRecord(begin=self._tick(), size=grow_to, event=Event.CLUSTER_ALLOC)
            records.append(grow)
        records += [
            WriteRecord(
                begin=self._tick(),
                offset=write.offset,
                data=b"".join(write.buffers),
                event=write.event,
            )
            for write in writes
        ]
        with self._recorded(*records):
            await self.inner.write_many(writes, grow_to=grow_to)

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        record = ZeroesRecord(begin=self._tick(), offset=offset, length=length, event=event)
        with self._recorded(record):
            await self.inner.write_zeroes(offset, length, event)

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        with self._recorded(TruncateRecord(begin=self._tick(), size=size, event=event)):
            await self.inner.truncate(size, event)

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        with self._recorded(FlushRecord(begin=self._tick())):
            await self.inner.flush(event)

    async def next_data(self, offset: int) -> int:
        return await self.inner.next_data(offset)

    async def close(self) -> None:
        await self.inner.close()

    def _tick(self) -> int:
        now = self.position
        self.position += 1
        return now

    @contextmanager
    def _recorded(self, *records: Record) -> Iterator[None]:
        """Log ``records``, which begin now, and note how and when they end."""
        self.log += records
        try:
            yield
        except BaseException:
            for record in records:
                record.failed = True
            raise
        finally:
            for record in records:
                record.end = self._tick()


def _content(inner: Storage, base: bytes | SparseBytes | None) -> SparseBytes:
    if isinstance(base, SparseBytes):
        return base
    if base is None and isinstance(inner, MemoryStorage):
        return inner.content.copy()
    if base is None and inner.size:
        raise ValueError("the file is not empty: give its content, or use RecorderStorage.over")
    return SparseBytes(base or b"")
