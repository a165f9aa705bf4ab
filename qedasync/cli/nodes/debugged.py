"""A disk over a blkdebug: what QEMU's block layer does with the guest's requests before they come
there, and tells it of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import qedasync
from qedasync.cli.nodes.disk_filter import DiskFilter, spread
from qedasync.cli.nodes.requests import Margins, aligned, pieces

if TYPE_CHECKING:
    from qedasync.cli.nodes.blkdebug import BlkdebugStorage
    from qedasync.cli.nodes.debugger import Debugger

__all__ = ["Debugged", "DebuggedBacking"]

_SECTOR = 512


class Debugged(DiskFilter):
    """Raises ``flush_to_os`` for every flush, ``flush_to_disk`` where there is anything to flush.

    A write that is to be durable is flushed before it counts as one: so QEMU does, and its first
    such flush finds nothing.

    Requests longer than what blkdebug takes come in pieces, one after the other. QEMU's QED driver
    takes whole sectors only: what a write lacks is read before.

    Args:
        through: every write is durable when it returns. The disk itself must not see to that.
        flushes: a flush does something.
    """

    def __init__(self, disk: Any, debug: BlkdebugStorage, *, through: bool, flushes: bool) -> None:
        super().__init__(disk)
        self._debug = debug
        self._through = through
        self._flushes = flushes
        self._unit = _SECTOR if debug.under_image else 1
        self._max_transfer = debug.max_transfer // self._unit * self._unit

    async def pread(self, length: int, offset: int) -> bytearray:
        data = bytearray(length)
        await self.preadv((data,), offset)
        return data

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int:
        views = list(buffers)
        length = sum(map(len, views))
        if not self._is_long(offset, length):
            return await super().preadv(views, offset)
        data = bytearray(length)
        for start, stop in self._pieces(offset, length):
            await super().preadv((memoryview(data)[start - offset : stop - offset],), start)
        return spread(data, views)

    async def pwritev(self, buffers: Iterable[bytes | bytearray | memoryview], offset: int) -> int:
        views = list(buffers)
        length = sum(map(len, views))
        await self._read_margins(offset, length)
        if self._is_long(offset, length):
            data = memoryview(b"".join(views))
            for start, stop in self._pieces(offset, length):
                await super().pwritev((data[start - offset : stop - offset],), start)
        else:
            await super().pwritev(views, offset)
        await self._end_write()
        return length

    async def write_zeroes(self, length: int, offset: int) -> None:
        await self._read_margins(offset, length)
        await super().write_zeroes(length, offset)
        await self._end_write()

    async def discard(self, length: int, offset: int) -> None:
        if self._debug.under_image:
            await super().discard(length, offset)
            return
        await super().discard(0, offset)  # says whether it may
        await self._debug.discard(offset, length)
        self._debug.guest_wrote()

    async def _read_margins(self, offset: int, length: int) -> None:
        if not length or not 0 <= offset <= self.size - length:
            return
        with suppress(qedasync.QEDError):  # as QEMU, which goes on
            for start, step, _ in Margins.of(offset, length, self._unit).reads():
                await super().pread(step, start)

    def _is_long(self, offset: int, length: int) -> bool:
        return 0 < self._max_transfer < aligned(offset, length, self._unit)[1]

    def _pieces(self, offset: int, length: int) -> Iterable[tuple[int, int]]:
        """Where each piece begins and ends."""
        for at, step in pieces(*aligned(offset, length, self._unit), self._max_transfer):
            yield max(at, offset), min(at + step, offset + length)

    async def truncate(self, size: int) -> None:
        await super().truncate(size)
        self._debug.guest_wrote()

    async def _end_write(self) -> None:
        if self._through:
            await self.flush()
        self._debug.guest_wrote()

    async def flush(self) -> None:
        written = await self._debug.begin_flush(to_disk=self._flushes)
        await super().flush()
        self._debug.end_flush(written)


class DebuggedBacking(DiskFilter):
    """The backing file of an image over a blkdebug, which is told of every read of it."""

    def __init__(self, disk: Any, debugger: Debugger) -> None:
        super().__init__(disk)
        self._debugger = debugger

    async def pread(self, length: int, offset: int) -> bytearray:
        await self._debugger.happen("read_backing_aio")
        return await super().pread(length, offset)

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int:
        await self._debugger.happen("read_backing_aio")
        return await super().preadv(buffers, offset)
