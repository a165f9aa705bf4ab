"""The allocating-write queue: whose turn it is to change metadata, and group commit.

Requests that need clusters queue here. A task of the image's own takes the turn (an
``asyncio.Lock``, first come first served), takes *everything* queued, commits it as one group and
wakes each request; meanwhile the next group gathers. Whoever else changes metadata (the need-check
timer, a resize, a repair) takes the same turn, which is what QEMU calls plugging the queue.

A request that is cancelled while it waits was never started; once its group is being committed it
waits for the end and only then raises.

Source: qemu 7.2 block/qed.c, where one request at a time is the allocating one; a group here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from qedasync.engine.tasks import TaskOwner
from qedasync.errors import ImageFailed, QEDError
from qedasync.storage.base import WriteBuffers
from qedasync.waiting import Settled

__all__ = ["AllocatingWrite", "AllocQueue"]

_GROUP_REQUESTS = 256
_GROUP_BYTES = 2 << 20  # half of what 64 tasks write: theirs come while the other half is written
_GROUP_WITH_FILLS = 32 << 20  # bytes; such a group waits for the disk, so the larger the better


class AllocatingWrite:
    """A run of a guest write that needs clusters; it stays within one slice.

    Attributes:
        pos, length: the guest bytes.
        buffers: the data, laid end to end; None marks whole clusters as ZERO.
        ended: is called with the request when that is in the image, or has failed. Raises nothing.
        only_free: leave clusters alone that are not unallocated when the turn comes. The run begins
            at a cluster, and ends at one or at the image's end.
        done: whether ``ended`` has been called.
        error: why it failed, once done.
    """

    __slots__ = ("buffers", "done", "ended", "error", "length", "only_free", "pos")

    def __init__(
        self,
        pos: int,
        length: int,
        buffers: WriteBuffers | None,
        ended: Callable[[AllocatingWrite], None],
        only_free: bool = False,
    ) -> None:
        self.pos = pos
        self.length = length
        self.buffers = buffers
        self.ended = ended
        self.only_free = only_free
        self.done = False
        self.error: QEDError | None = None

    def finish(self) -> None:
        """Say that it has ended."""
        self.done = True
        self.ended(self)


class _Awaited(Settled):
    """The end of a request that a coroutine waits for."""

    __slots__ = ()

    def ended(self, request: AllocatingWrite) -> None:
        self.finish()


Commit = Callable[[Sequence[AllocatingWrite]], Awaitable[None]]


class AllocQueue:
    """Gathers allocating writes into groups.

    Args:
        commit: writes a group; raises if any part of it failed.
        idle: called when nothing waits any more.

    Attributes:
        turn: the right to change metadata.
        fill_bytes: what a request may take in memory beside its data, for the untouched parts of
            its clusters.
    """

    def __init__(self, commit: Commit, idle: Callable[[], None], tasks: TaskOwner) -> None:
        self.turn = asyncio.Lock()
        self.fill_bytes = 0
        self._commit = commit
        self._idle = idle
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._waiting: list[AllocatingWrite] = []
        self._committer: asyncio.Task[None] | None = None

    async def write(
        self, pos: int, length: int, buffers: WriteBuffers | None, *, only_free: bool = False
    ) -> None:
        """Queue a run and wait until it is in the image; see :class:`AllocatingWrite`.

        Raises:
            QEDError: it failed; the old mapping stands.

        Cancellation: may stop before start; else runs to the end, then raises.
        """
        end = _Awaited(self._loop)
        request = AllocatingWrite(pos, length, buffers, end.ended, only_free)
        self.add(request)
        try:
            await end.waiter
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
            else:
                await end.outlast()
            raise
        if request.error is not None:
            raise request.error

    def add(self, request: AllocatingWrite) -> None:
        """Queue a request that cannot be taken back."""
        self._waiting.append(request)
        if self._committer is None:
            self._committer = self._tasks.start(self._run(), "allocating writes")

    async def _run(self) -> None:
        group: list[AllocatingWrite] = []
        try:
            while self._waiting:
                async with self.turn:
                    group = self._take()
                    await self._commit_group(group)
                group = []
            self._committer = None
            self._idle()
        except (
            BaseException
        ) as error:  # the loop is shutting down, or there is a bug: wake them all
            self._committer = None
            self._abandon(group, error)
            raise

    def _take(self) -> list[AllocatingWrite]:
        """Everything that waits, up to what is fair to the loop and to memory."""
        n = size = 0
        limit = _GROUP_WITH_FILLS if self.fill_bytes else _GROUP_BYTES
        for request in self._waiting[:_GROUP_REQUESTS]:
            size += request.length + self.fill_bytes
            if n and size > limit:
                break
            n += 1
        group, self._waiting = self._waiting[:n], self._waiting[n:]
        return group

    async def _commit_group(self, group: list[AllocatingWrite]) -> None:
        """Commit together; if that fails, one by one, so that only those fail which must."""
        try:
            await self._commit(group)
        except QEDError as error:
            if len(group) > 1:
                for request in group:
                    await self._commit_group([request])
                return
            if group:
                group[0].error = error
        for request in group:
            request.finish()

    def _abandon(self, group: list[AllocatingWrite], cause: BaseException) -> None:
        waiting, self._waiting = self._waiting, []
        for request in [*group, *waiting]:
            if not request.done:
                request.error = ImageFailed("The image stopped before this write could end")
                request.error.__cause__ = cause
                request.finish()
