"""blkdebug: a storage that fails or stops at named steps, as QEMU's driver of that name does.

Events come from three sides. The QED engine says why it touches the file, and QEMU's driver has a
name for most of that. Writes have events of their own, which QEMU's block layer raises whatever
lies above: ``pwritev``, ``pwritev_done`` and their like. So have the guest's flushes, and reads of
a backing file: see :mod:`qedasync.cli.nodes.debugged`.

Requests are cut to the node's limits before rules see them. The bytes are moved exactly as they
were asked for.

Differs from QEMU: what an unaligned write lacks is read for the rules' sake and not written back,
so that two such writes cannot lose each other's bytes, and a read that fails does no harm. QEMU
writes what happens to be in memory then.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import qedasync
from qedasync import Event
from qedasync.cli.nodes.debugger import Debugger
from qedasync.cli.nodes.requests import Margins, aligned, pieces, zero_pieces
from qedasync.cli.nodes.rules import Rules
from qedasync.cli.sizes import whole_sectors

__all__ = ["BlkdebugStorage"]

_QEMU_NAMES = {
    Event.READ_AIO: "read_aio",
    Event.WRITE_AIO: "write_aio",
    Event.COW_READ: "cow_read",
    Event.COW_WRITE: "cow_write",
    Event.L1_UPDATE: "l1_update",
    Event.L2_LOAD: "l2_load",
    Event.L2_UPDATE: "l2_update",
    Event.L2_ALLOC_WRITE: "l2_update",
    Event.CHECK_LOAD: "l2_load",
}
"""What QEMU's QED driver calls a step, where it has a name for it."""

_Move: TypeAlias = Callable[[int, int], Awaitable[None]]
"""Writes what a request has for the bytes [start, stop) of the file; not all of them need be its
own."""


class BlkdebugStorage(qedasync.StorageBase):
    """A storage over another one, with rules and breakpoints. Owns the other one.

    Attributes:
        debugger: the rules and breakpoints.
        inner: the other storage.
        under_image: a QED image lies right above. QEMU writes zeroes into a mapped cluster as data.
        align: bytes of a block: requests are for whole ones.
        max_transfer: bytes of a request at most; 0 for any number.
    """

    # So an image writes all of a new cluster, as QEMU does.
    zero_fills = False

    def __init__(self, inner: qedasync.Storage, rules: Rules) -> None:
        self.debugger = Debugger(rules)
        self.inner = inner
        self.under_image = False
        self.align = rules.align
        self.max_transfer = rules.limits.get("max-transfer", 0)
        self._zero_unit = max(self.align, rules.limits.get("opt-write-zero", 0))
        self._max_zeroes = rules.limits.get("max-write-zero", 0)
        self._discard_unit = max(self.align, rules.limits.get("opt-discard", 0))
        self._max_discard = rules.limits.get("max-discard", 0)
        self._dirty = False
        self._new_table = False  # since the last flush
        self._written = self._flushed = 0

    @property
    def size(self) -> int:
        return self.inner.size

    # ------------------------------------------------------------------ reads

    async def read_into(
        self, buffers: Sequence[Any], offset: int, event: Event = Event.READ_AIO
    ) -> None:
        await self._say(event)
        await self._check_read(*aligned(offset, sum(map(len, buffers)), self.align))
        await self.inner.read_into(buffers, offset, event)

    async def _check_read(self, start: int, length: int) -> None:
        """What lies past the end of the file is zeroes without a request."""
        end = sum(aligned(0, whole_sectors(self.size), self.align))
        for piece in pieces(start, max(0, min(length, end - start)), self.max_transfer):
            await self.debugger.check("read", *piece)

    async def _say(self, event: Event) -> None:
        if event in _QEMU_NAMES:
            await self.debugger.happen(_QEMU_NAMES[event])

    # ----------------------------------------------------------------- writes

    async def write(
        self, buffers: Sequence[Any], offset: int, event: Event = Event.WRITE_AIO
    ) -> None:
        await self._say(event)
        self._new_table |= event is Event.L2_ALLOC_WRITE
        length = sum(map(len, buffers))

        async def move(start: int, stop: int) -> None:
            if stop - start == length:
                await self.inner.write(buffers, offset, event)
            else:
                part = memoryview(b"".join(buffers))[start - offset : stop - offset]
                await self.inner.write([part], start, event)

        margins = await self._read_margins(offset, length)
        await self._write(margins.start, margins.stop, _within(offset, length, move))

    async def _read_margins(self, offset: int, length: int) -> Margins:
        """What an unaligned write lacks. QEMU goes on, with what memory holds, if that fails."""
        margins = Margins.of(offset, length, self.align)
        with suppress(qedasync.StorageError):
            for start, step, ends in margins.reads():
                for end in ends:
                    await self.debugger.happen(f"pwritev_rmw_{end}")
                await self._check_read(start, step)
                for end in ends:
                    await self.debugger.happen(f"pwritev_rmw_after_{end}")
        return margins

    async def _write(self, start: int, stop: int, move: _Move) -> None:
        """Whole blocks of data."""
        await self.debugger.happen("pwritev")
        async with _Ended(self.debugger):
            await self._write_pieces(start, stop, move)

    async def _write_pieces(self, start: int, stop: int, move: _Move) -> None:
        self._dirty = True
        for at, step in pieces(start, stop - start, self.max_transfer):
            await self.debugger.check("write", at, step)
            await move(at, at + step)
        # What a block has past the end of the file is written, too. An image goes by its own end.
        if stop > self.inner.size and not self.under_image:
            await self.inner.truncate(stop)

    async def write_zeroes(
        self, offset: int, length: int, event: Event = Event.PWRITEV_ZERO
    ) -> None:
        async def zero(start: int, stop: int) -> None:
            await self.inner.write_zeroes(start, stop - start, event)

        if self.under_image:
            await self.debugger.happen("write_aio")
        margins = await self._read_margins(offset, length)
        if self.under_image:
            await self._write(margins.start, margins.stop, _within(offset, length, zero))
        else:
            await self._write_zeroes(margins, _within(offset, length, zero))

    async def _write_zeroes(self, margins: Margins, zero: _Move) -> None:
        """Blocks of which only a part is to be zeroed, as data; what is between, as zeroes."""
        start, stop, align = margins.start, margins.stop, margins.align
        if margins.merged and (margins.head or margins.tail):
            await self._write(start, stop, zero)
            return
        if margins.head:
            await self._write(start, start + align, zero)
            start += align
        last = stop - align if margins.tail else stop
        if last > start:
            await self.debugger.happen("pwritev_zero")
            async with _Ended(self.debugger):
                await self._write_zero_pieces(start, last, zero)
        if margins.tail:
            await self._write(last, stop, zero)

    async def _write_zero_pieces(self, start: int, stop: int, zero: _Move) -> None:
        for at, step, as_data in zero_pieces(
            start,
            stop - start,
            unit=self._zero_unit,
            most=self._max_zeroes,
            most_data=self.max_transfer,
        ):
            if as_data or not await self._takes("write-zeroes", at, step):
                await self._write_pieces(at, at + step, zero)
            else:
                self._dirty = True
                await zero(at, at + step)

    async def discard(self, offset: int, length: int) -> None:
        """Zero what the guest does not need any more, in whole blocks; no event happens."""
        start, stop = -(-offset // self.align) * self.align, offset + length
        for at, step, _ in zero_pieces(
            start, stop - stop % self.align - start, unit=self._discard_unit, most=self._max_discard
        ):
            if await self._takes("discard", at, step):
                self._dirty = True
                await self.inner.write_zeroes(at, step)

    async def _takes(self, iotype: str, offset: int, length: int) -> bool:
        """Whether a request passes the rules; False for an error that says "not supported"."""
        try:
            await self.debugger.check(iotype, offset, length)
        except qedasync.StorageError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return False
        return True

    # --------------------------------------------------------------- the rest

    async def flush(self, event: Event = Event.FLUSH_TO_DISK) -> None:
        if not self._dirty:
            return
        written, self._dirty = self._flushed, False
        if self._new_table:  # QEMU's driver flushes for that as a guest does
            self._new_table = False
            written = await self.begin_flush(to_disk=True)
        try:
            await self.debugger.check("flush", 0, 0)
            await self.inner.flush(event)
        except BaseException:
            self._dirty = True
            raise
        self.end_flush(written)

    def guest_wrote(self) -> None:
        """A request of the guest has changed something."""
        self._written += 1

    async def begin_flush(self, *, to_disk: bool) -> int:
        """A flush of the guest's, or one like it; what to tell :meth:`end_flush` when it is done.

        Args:
            to_disk: it does something.
        """
        await self.debugger.happen("flush_to_os")
        written = self._written
        if to_disk and written != self._flushed:
            await self.debugger.happen("flush_to_disk")
        return written

    def end_flush(self, written: int) -> None:
        """That flush has done its work."""
        self._flushed = max(self._flushed, written)

    async def truncate(self, size: int, event: Event = Event.TRUNCATE) -> None:
        self._dirty = True
        await self.inner.truncate(size, event)

    async def next_data(self, offset: int) -> int:
        await self.debugger.check("block-status", offset, max(0, self.size - offset))
        return await self.inner.next_data(offset)

    async def close(self) -> None:
        self.debugger.remove_all_breaks()
        await self.inner.close()


def _within(offset: int, length: int, move: _Move) -> _Move:
    """``move`` for the part that lies in ``[offset, offset + length)``, where there is one."""

    async def inside(start: int, stop: int) -> None:
        start, stop = max(start, offset), min(stop, offset + length)
        if start < stop:
            await move(start, stop)

    return inside


class _Ended:
    """Says that a write has ended, well or with an error."""

    def __init__(self, debugger: Debugger) -> None:
        self._debugger = debugger

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None or issubclass(kind, qedasync.StorageError):
            await self._debugger.happen("pwritev_done")
