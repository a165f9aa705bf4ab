"""What a worker thread does for a posix storage: transfers in batches.

The loop's thread makes :class:`Transfer` objects and waits; a worker gets a list of them, and
leaves in each the error it met, if any. Adjacent writes leave as one ``pwritev``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from qedasync.storage.base import Write, zero_views
from qedasync.storage.transfer import (
    ALIGNMENT,
    IOV_MAX,
    direct_read,
    direct_write,
    read_fully,
    write_fully,
)
from qedasync.waiting import Settled

__all__ = ["Channel", "Transfer", "settle"]

_MERGE_BYTES = 8 << 20


class Transfer(Settled):
    """A read, a write, a list of ordered writes, or a range to zero, on its way through a thread.

    Attributes:
        offset, length: the range of the file.
        buffers: what to fill or write; empty for the other kinds.
        ordered: writes to be made in this order.
        grow_to: make the file at least that long first.
        zeroes: the range is to read as zeroes.
        refused: the kernel has tried it without a thread, and did not do all of it.
        error: the host's error, once done.
    """

    __slots__ = (
        "buffers",
        "error",
        "grow_to",
        "length",
        "offset",
        "ordered",
        "refused",
        "zeroes",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        buffers: Sequence[Any],
        offset: int,
        length: int,
        *,
        ordered: Sequence[Write] | None = None,
        grow_to: int = 0,
        zeroes: bool = False,
    ) -> None:
        super().__init__(loop)
        self.buffers = buffers
        self.offset = offset
        self.length = length
        self.ordered = ordered
        self.grow_to = grow_to
        self.zeroes = zeroes
        self.refused = False
        self.error: OSError | None = None

    @property
    def plain(self) -> bool:
        """Whether it is one write and nothing else."""
        return self.ordered is None and not self.zeroes

    @property
    def end(self) -> int:
        """How long the file is at least when this is done, in bytes."""
        return max(self.offset + self.length, self.grow_to)

    @property
    def aligned(self) -> bool:
        """Whether an O_DIRECT descriptor takes it as it is; growth wants to be alone too."""
        if self.grow_to:
            return False
        if self.ordered is not None:
            return all(_is_aligned(write.offset, write.length) for write in self.ordered)
        return _is_aligned(self.offset, self.length)


async def settle(transfer: Transfer, queue: Callable[[], list[Transfer]]) -> None:
    """Wait until a transfer has ended, or take it back if we are cancelled in time.

    Args:
        queue: those that nobody has yet; asked for only then, for it may be another list by then.

    Cancellation: at once while it is in the queue, else runs to the end.
    """
    try:
        await transfer.waiter
    except asyncio.CancelledError:
        waiting = queue()
        if transfer in waiting:
            waiting.remove(transfer)
        else:
            await transfer.outlast()
        raise


class Channel(NamedTuple):
    """A descriptor and how to move bytes through it; used on worker threads only."""

    fd: int
    read: Callable[[int, Sequence[Any], int], None]
    write: Callable[[int, Sequence[Any], int], None]

    @classmethod
    def of(cls, fd: int, *, direct: bool) -> Channel:
        """Through the page cache, or past it (``O_DIRECT``)."""
        if direct:
            return cls(fd, direct_read, direct_write)
        return cls(fd, read_fully, write_fully)

    def run_reads(self, batch: Sequence[Transfer]) -> None:
        """Fill the buffers of each."""
        for read in batch:
            try:
                self.read(self.fd, read.buffers, read.offset)
            except Exception as error:
                read.error = _host_error(error)

    def run_writes(self, batch: Sequence[Transfer]) -> None:
        """Carry all out, adjacent ones together; between two transfers there is no order."""
        plain = sorted((write for write in batch if write.plain), key=_offset_of)
        for group in _adjacent(plain):
            self._write_group(group)
        for transfer in batch:
            if not transfer.plain:
                self._run_special(transfer)

    def _write_group(self, group: Sequence[Transfer]) -> None:
        if len(group) > 1:
            merged = [buffer for write in group for buffer in write.buffers]
            with contextlib.suppress(Exception):  # then one by one, to see whose fault it is
                self.write(self.fd, merged, group[0].offset)
                return
        for write in group:
            try:
                self.write(self.fd, write.buffers, write.offset)
            except Exception as error:
                write.error = _host_error(error)

    def _run_special(self, transfer: Transfer) -> None:
        try:
            if transfer.zeroes:
                self._zero(transfer.offset, transfer.length)
            self.write_in_order(transfer.ordered or (), transfer.grow_to)
        except Exception as error:
            transfer.error = _host_error(error)

    def write_in_order(self, writes: Sequence[Write], grow_to: int) -> None:
        """Make the file at least ``grow_to`` bytes long, then all of ``writes``, one by one."""
        if grow_to and os.fstat(self.fd).st_size < grow_to:
            os.ftruncate(self.fd, grow_to)
        write_all, fd = self.write, self.fd
        for group in _adjacent(writes):
            first = group[0]
            if len(group) == 1:
                write_all(fd, first.buffers, first.offset)
            else:
                merged = [buffer for write in group for buffer in write.buffers]
                write_all(fd, merged, first.offset)

    def _zero(self, offset: int, length: int) -> None:
        from qedasync.storage.libc import punch_hole  # late: few jobs need ctypes

        if punch_hole(self.fd, offset, length):
            return
        for piece in zero_views(length):
            self.write(self.fd, [piece], offset)
            offset += len(piece)


_W = TypeVar("_W", Transfer, Write)


def _adjacent(writes: Sequence[_W]) -> Iterator[list[_W]]:
    """Cut ``writes`` into groups that lie end to end in the file, in the order given."""
    group: list[_W] = []
    end = -1
    buffers = length = 0
    for write in writes:
        buffers += len(write.buffers)
        length += write.length
        if group and (write.offset != end or buffers > IOV_MAX or length > _MERGE_BYTES):
            yield group
            group = []
            buffers, length = len(write.buffers), write.length
        group.append(write)
        end = write.offset + write.length
    if group:
        yield group


def _host_error(error: Exception) -> OSError:
    """A worker must not end over a transfer, whatever is wrong with it: its waiters would hang."""
    if isinstance(error, OSError):
        return error
    number = errno.EINVAL if isinstance(error, (OverflowError, ValueError)) else errno.EIO
    return OSError(number, f"{type(error).__name__}: {error}")


def _offset_of(transfer: Transfer) -> int:
    return transfer.offset


def _is_aligned(offset: int, length: int) -> bool:
    return offset % ALIGNMENT == 0 and length % ALIGNMENT == 0
