"""A disk over a blkdebug: what QEMU's block layer tells that when the guest flushes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from qedasync.cli.nodes.disk_filter import DiskFilter

if TYPE_CHECKING:
    from qedasync.cli.nodes.blkdebug import BlkdebugStorage

__all__ = ["Debugged"]


class Debugged(DiskFilter):
    """Raises ``flush_to_os`` for every flush, ``flush_to_disk`` where there is anything to flush.

    A flush of the image's own, between its tables, has neither. A write that is to be durable is
    flushed before it counts as one: so QEMU does, and its first such flush finds nothing.

    Args:
        through: every write is durable when it returns. The disk itself must not see to that.
        flushes: a flush does something.
    """

    def __init__(self, disk: Any, debug: BlkdebugStorage, *, through: bool, flushes: bool) -> None:
        super().__init__(disk)
        self._debug = debug
        self._through = through
        self._flushes = flushes
        self._written = self._flushed = 0

    async def pwritev(self, buffers: Iterable[bytes | bytearray | memoryview], offset: int) -> int:
        length = await super().pwritev(buffers, offset)
        await self._end_write()
        return length

    async def write_zeroes(self, length: int, offset: int) -> None:
        await super().write_zeroes(length, offset)
        await self._end_write()

    async def truncate(self, size: int) -> None:
        await super().truncate(size)
        self._written += 1

    async def _end_write(self) -> None:
        if self._through:
            await self.flush()
        self._written += 1

    async def flush(self) -> None:
        await self._debug.happen("flush_to_os")
        written = self._written
        if self._flushes and written != self._flushed:
            await self._debug.happen("flush_to_disk")
        await super().flush()
        self._flushed = max(self._flushed, written)
