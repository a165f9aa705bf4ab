"""The fast storage past the page cache (``O_DIRECT``): the kernel's queues first, then threads.

Nothing here is cached, so nothing is made inline, and a thread for each request in flight would be
slow. What io_uring or native AIO takes goes to the kernel in few calls for all that wait in a turn
of the loop; what it does not, or not in full, goes the way of every other storage, which reports
errors and knows what lies past the end.

The race to keep in mind: an unaligned write reads blocks and writes them back, so it runs alone.
"""

from __future__ import annotations

import asyncio

from qedasync.storage.batch import Transfer
from qedasync.storage.host import OpenedFile
from qedasync.storage.kernel_io import KernelIO, MakeQueue, best_queue
from qedasync.storage.posix import PosixStorage
from qedasync.storage.workers import Workers

__all__ = ["DirectStorage"]


class DirectStorage(PosixStorage):
    """A file on the host, open with ``O_DIRECT``; made by :meth:`open`. Implements ``Storage``.

    Args:
        file, path, loop, workers: as for :class:`~qedasync.storage.posix.PosixStorage`.
        make_queue: the host's way to take requests without a thread.
    """

    direct = True
    _together = 16  # the device works on them while the turn brings forth more

    def __init__(
        self,
        file: OpenedFile,
        path: str,
        loop: asyncio.AbstractEventLoop,
        workers: Workers,
        *,
        make_queue: MakeQueue = best_queue,
    ) -> None:
        super().__init__(file, path, loop, workers)
        self._exclusive = False  # an unaligned write runs
        self._kernel = self._reads.kernel = KernelIO(file.fd, loop, self._kernel_done, make_queue)

    def _dispatch_writes(self) -> None:
        """Aligned writes run side by side; an unaligned one waits for them and runs alone."""
        self._write_scheduled = False
        while self._writes and not self._exclusive:
            aligned = next(
                (i for i, write in enumerate(self._writes) if not write.aligned),
                len(self._writes),
            )
            if not aligned:
                if not self._writing and not self._kernel.writing:
                    self._exclusive = True
                    self._start_writes([self._writes.pop(0)])
                return
            left = self._start_native(self._writes[:aligned])
            self._writes[:aligned] = left
            free = self._workers.limit - self._writing
            if left and free <= 0:
                return
            if left:
                share = -(-len(left) // free)
                batch, self._writes = self._writes[:share], self._writes[share:]
                self._start_writes(batch)

    def _start_native(self, writes: list[Transfer]) -> list[Transfer]:
        """Hand over writes inside the file: growing it is for a thread. Answers the others."""
        inside = [write for write in writes if write.plain and write.end <= self._size]
        others = [write for write in writes if not write.plain or write.end > self._size]
        return self._kernel.start_writes(inside) + others

    def _kernel_done(self, reads: list[Transfer], writes: list[Transfer]) -> None:
        self._reads.landed(reads)
        for write in writes:
            self._flusher.unsynced = True
            if write.refused:
                self._writes.append(write)
            else:
                write.finish()
        if self._writes:
            self._dispatch_writes()

    def _writes_done(self, batch: list[Transfer], truncations: int) -> None:
        self._exclusive = False
        super()._writes_done(batch, truncations)
