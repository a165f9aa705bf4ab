"""A disk between a job and the disk it works on: it remembers what went wrong, and where.

The jobs of the library raise what the storage said. qemu-img's messages say which side failed, what
it did, and at which byte of the guest's disk; that is known here, where the call came through.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from qedasync.cli.options import ToolError
from qedasync.errors import QEDError
from qedasync.jobs.runs import runs_from

if TYPE_CHECKING:
    from qedasync import Disk, Extent
    from qedasync.cli.nodes import Node

__all__ = ["Failure", "Over", "Pace", "Witness", "closing", "reason"]

_SECTOR = 512
_MOST_AT_ONCE = 1 << 30  # bytes to ask about


class Failure(NamedTuple):
    """A call that failed.

    Attributes:
        what: what the call was to do.
        offset: guest bytes.
        error: what it raised.
    """

    what: Literal["read", "write", "status", "flush"]
    offset: int
    error: QEDError

    @property
    def reason(self) -> str:
        """What the host calls it."""
        return reason(self.error)


def reason(error: QEDError) -> str:
    """What the host calls an error."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)


@asynccontextmanager
async def closing(node: Node) -> AsyncIterator[Node]:
    """Close it in the end. What went wrong before is what counts.

    Raises:
        ToolError: the image could not be flushed. Differs from QEMU: it says nothing then.
    """
    try:
        yield node
    except BaseException:
        with suppress(QEDError):
            await node.close()
        raise
    try:
        await node.close()
    except QEDError as error:
        raise ToolError(f"Could not close '{node.filename}': {reason(error)}") from error


class Pace:
    """How fast something may go.

    Args:
        rate: bytes a second; 0 for no limit.
    """

    def __init__(self, rate: int = 0) -> None:
        self._rate = rate
        self._free_at = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._rate > 0

    async def take(self, length: int) -> None:
        """Wait for one's turn to move ``length`` bytes."""
        if not self._rate:
            return
        import asyncio  # late: not everything that is watched needs an event loop

        now = asyncio.get_running_loop().time()
        start = max(now, self._free_at)
        self._free_at = start + length / self._rate
        if start > now:
            await asyncio.sleep(start - now)


class Witness:
    """A disk that does what another one does; implements ``Disk``. Owns the other one.

    Args:
        pace: of the writes.
        opaque: zeroes are data like any other.
        salvaging: told of each failure that a job may get over: a sector that cannot be read.

    Attributes:
        failure: what failed, that nearest to the disk's beginning if much did; or None.
    """

    def __init__(
        self,
        disk: Disk,
        *,
        pace: Pace | None = None,
        opaque: bool = False,
        salvaging: Callable[[Failure], None] | None = None,
    ) -> None:
        self.failure: Failure | None = None
        self._disk = disk
        self._pace = pace or Pace()
        self._opaque = opaque
        self._salvaging = salvaging

    def __getattr__(self, name: str) -> Any:
        """What only some disks have. It passes by here, so there is none where that matters."""
        if self._salvaging or self._opaque or self._pace.limited:
            raise AttributeError(name)
        return getattr(self._disk, name)

    @property
    def path(self) -> str:
        return self._disk.path

    @property
    def size(self) -> int:
        return self._disk.size

    @property
    def readonly(self) -> bool:
        return self._disk.readonly

    @property
    def closed(self) -> bool:
        return self._disk.closed

    # ------------------------------------------------------------------ reads

    async def pread(self, length: int, offset: int) -> bytearray:
        try:
            return await self._disk.pread(length, offset)
        except QEDError as error:
            self._note(Failure("read", offset, error), length)
            raise

    async def readinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        return await self.preadv((buffer,), offset)

    async def preadv(self, buffers: Iterable[bytearray | memoryview], offset: int) -> int:
        views = list(buffers)
        try:
            return await self._disk.preadv(views, offset)
        except QEDError as error:
            self._note(Failure("read", offset, error), sum(map(len, views)))
            raise

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        try:
            runs = await self._disk.block_status(offset, length)
        except QEDError as error:
            self._note(Failure("status", await self._first_bad(offset, length), error), length)
            raise
        return [self._told(run) for run in runs] if self._opaque else runs

    def _told(self, run: Extent) -> Extent:
        return replace(run, zero=False) if self._opaque else run

    async def _first_bad(self, offset: int, length: int) -> int:
        """Where in the range it is that nothing is known, to the sector; or that is over by now.

        Never asks for much more than there is before that place: the map may be of any size.
        """
        n = min(_SECTOR, length)
        while await self._is_known(offset, n):
            if n == length:
                return offset
            n = min(2 * n, length)
        length = n
        while length > _SECTOR:
            half = -(-length // _SECTOR) // 2 * _SECTOR
            if await self._is_known(offset, half):
                offset, length = offset + half, length - half
            else:
                length = half
        return offset

    async def _is_known(self, offset: int, length: int) -> bool:
        try:
            await self._disk.block_status(offset, length)
        except QEDError:
            return False
        return True

    async def extents(self) -> AsyncGenerator[Extent, None]:
        pos = 0
        try:
            async with aclosing(runs_from(self._disk, 0)) as runs:
                async for run in runs:
                    pos = run.end
                    yield self._told(run)
        except QEDError as error:
            self._note(Failure("status", await self._first_bad(pos, self.size - pos), error))
            raise

    # ----------------------------------------------------------------- writes

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        return await self.pwritev((data,), offset)

    async def pwritev(self, buffers: Iterable[bytes | bytearray | memoryview], offset: int) -> int:
        views = list(buffers)
        await self._pace.take(sum(map(len, views)))
        try:
            return await self._disk.pwritev(views, offset)
        except QEDError as error:
            self._note(Failure("write", offset, error))
            raise

    async def write_zeroes(self, length: int, offset: int) -> None:
        try:
            await self._disk.write_zeroes(length, offset)
        except QEDError as error:
            self._note(Failure("write", offset, error))
            raise

    async def discard(self, length: int, offset: int) -> None:
        try:
            await self._disk.discard(length, offset)
        except QEDError as error:
            self._note(Failure("write", offset, error))
            raise

    async def flush(self) -> None:
        try:
            await self._disk.flush()
        except QEDError as error:
            self._note(Failure("flush", 0, error))
            raise

    async def truncate(self, size: int) -> None:
        try:
            await self._disk.truncate(size)
        except QEDError as error:
            self._note(Failure("write", size, error))
            raise

    # ------------------------------------------------------------- life cycle

    async def close(self) -> None:
        await self._disk.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    def _note(self, failure: Failure, length: int = 0) -> None:
        if self._salvaging is None:
            if self.failure is None or failure.offset < self.failure.offset:
                self.failure = failure
        elif failure.what == "status" or length <= _SECTOR:
            self._salvaging(failure)


class Over(Witness):
    """A source to be copied over a target's backing file: what it holds, and what it lacks.

    Where neither it nor a backing file of its own has anything, it reads as zeroes; so must the
    target, whatever its backing file has there.

    Args:
        target: has the backing file.
    """

    def __init__(self, disk: Disk, target: Disk) -> None:
        super().__init__(disk)
        self._target = target

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        runs: list[Extent] = []
        for run in await super().block_status(offset, length):
            runs += [shown async for shown in self._shown(run, run.length)]
        return runs

    async def extents(self) -> AsyncGenerator[Extent, None]:
        async with aclosing(super().extents()) as runs:
            async for run in runs:
                async for shown in self._shown(run, _MOST_AT_ONCE):
                    yield shown

    async def _shown(self, run: Extent, most: int) -> AsyncIterator[Extent]:
        """What is to be done about a run, looked up for at most so many bytes at once."""
        if run.kind != "unallocated" or run.depth:
            yield run
            return
        for start in range(run.start, run.end, most):
            length = min(most, run.end - start)
            for below in await self._target.block_status(start, length):
                yield _must_be_zero(below)


def _must_be_zero(run: Extent) -> Extent:
    """What is to be done about a run of the target: nothing, if it reads as zeroes."""
    from qedasync import ExtentKind

    kind = ExtentKind.UNALLOCATED if run.zero else ExtentKind.ZERO
    return replace(run, kind=kind, zero=True)
