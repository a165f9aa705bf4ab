"""Reads that would block: the kernel takes what it can without a thread, threads do the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from qedasync.storage.base import Started
from qedasync.storage.batch import Channel, Transfer, settle
from qedasync.storage.workers import Workers

if TYPE_CHECKING:
    from qedasync.storage.kernel_io import KernelIO

__all__ = ["RING_FROM", "ReadQueue"]

RING_FROM = 32
"""Reads that would block, before a ring is worth making."""

_LONGEST = (
    16 << 10
)  # through the ring, whose memory is this times its slots; the rest takes threads


class ReadQueue:
    """Reads of one descriptor on their way.

    Args:
        channel: the descriptor, for threads.
        loop: where completions are delivered.
        workers: threads.
        ring_from: see :data:`RING_FROM`.
        together: so many that wait leave before the loop's turn has ended; 0 for never.

    Attributes:
        kernel: what takes requests without a thread, if there is one.
    """

    def __init__(
        self,
        channel: Channel,
        loop: asyncio.AbstractEventLoop,
        workers: Workers,
        *,
        ring_from: int = RING_FROM,
        together: int = 0,
    ) -> None:
        self.kernel: KernelIO | None = None
        self._channel = channel
        self._loop = loop
        self._workers = workers
        self._until_ring = ring_from
        self._together = together
        self._waiting: list[Transfer] = []
        self._running = 0  # batches on threads
        self._scheduled = False

    def start(self, length: int, offset: int) -> Started | None:
        """Have the kernel read ``length`` bytes; None if this is not the way."""
        kernel = self.kernel or self._ring_in_time()
        return None if kernel is None else kernel.start_read(length, offset)

    def _ring_in_time(self) -> KernelIO | None:
        """Count a read that would block; after some of them there is a ring."""
        self._until_ring -= 1
        if self._until_ring == 0:
            from qedasync.storage.kernel_io import KernelIO, ring_queue  # late: few need it

            fd, done = self._channel.fd, self._kernel_done
            self.kernel = KernelIO(fd, self._loop, done, ring_queue, alignment=1, longest=_LONGEST)
        return self.kernel

    def _kernel_done(self, reads: list[Transfer], writes: list[Transfer]) -> None:
        self.landed(reads)

    def landed(self, reads: Sequence[Transfer]) -> None:
        """The kernel has let go of these; what was refused is for a thread."""
        for read in reads:
            if read.refused:
                self._waiting.append(read)
            else:
                read.finish()
        if self._waiting:
            self.dispatch()

    async def read(self, transfer: Transfer) -> None:
        """Return when the transfer has ended; its ``error`` says how.

        Cancellation: taken back if nobody has it yet, else after it has ended.
        """
        if self.kernel is None:
            self._ring_in_time()
        self._waiting.append(transfer)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.dispatch)
        elif len(self._waiting) == self._together:
            self.dispatch()
        await settle(transfer, lambda: self._waiting)

    def dispatch(self) -> None:
        """Spread what waits, and the kernel does not take, over the idle threads."""
        self._scheduled = False
        if self.kernel is not None:
            self._waiting = self.kernel.start_reads(self._waiting)
        while self._waiting and (idle := self._workers.limit - self._running) > 0:
            share = -(-len(self._waiting) // idle)
            batch, self._waiting = self._waiting[:share], self._waiting[share:]
            self._running += 1
            self._workers.submit(
                partial(self._channel.run_reads, batch), partial(self._done, batch)
            )

    def _done(self, batch: list[Transfer]) -> None:
        self._running -= 1
        for read in batch:
            read.finish()
        if self._waiting:
            self.dispatch()

    async def close(self) -> None:
        """Wait until nothing is under way, except on threads; nothing new may come.

        Cancellation: runs to the end.
        """
        self._until_ring = 0
        self.dispatch()
        kernel = self.kernel
        if kernel is not None:
            try:
                await kernel.drain()
            finally:
                kernel.stop()
                self._workers.submit(kernel.release, _nothing)


def _nothing() -> None:
    """There is nobody to tell."""
