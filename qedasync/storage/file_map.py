"""A file's pages in this process's memory: its bytes without a copy and without a system call.

Two things go wrong with maps, and this module is about keeping both out.

*A page that is not in the page cache* makes whoever touches it wait for the disk, and the loop with
it. So only windows of the file that were seen in the cache are lent (:attr:`FileMap.resident`). A
window may leave it again when the host is short of memory. Then the process takes a major fault,
and at the next :meth:`FileMap.refresh` every window has to be seen again: what can be missed is
what was lent between two looks.

*A file that is cut short* ends the process with SIGBUS as soon as a page past the new end is
touched. So there is a map only under a *read lease* of the kernel's. It is not given while anybody
has the file open for writing, and whoever wants to open it so, or to cut it, waits until we give it
up, or for ``/proc/sys/fs/lease-break-time`` (45 s). :meth:`FileMap.refresh`, at least once a
second, sees that somebody waits: from then on nothing is lent, and when the last view is gone so
are the map and the lease. What is left of the danger: a view that is kept for longer than that, and
a disk that fails when a page that has left the cache is read again.

The map keeps a descriptor of its own (``mmap`` makes it), and with it the lease and the locks: a
view that outlives the storage is as safe as before.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import signal
from contextlib import suppress

from qedasync.storage.host import NOWAIT, preadv
from qedasync.storage.thread_usage import major_faults

__all__ = ["WINDOW", "FileMap"]

WINDOW = 64 << 10
"""Bytes that are in the page cache as a whole, or are not lent."""

_LOOK = 1.0
_MOST_WINDOWS = 1 << 16  # that are remembered: 4 GiB of the file, some 6 MiB of memory


class FileMap:
    """A map of a whole file, made by :meth:`of`.

    Args:
        look: seconds between two looks at the lease when nobody reads.

    Attributes:
        view: the file, read-only; empty once nothing is lent any more.
        resident: numbers of the windows that may be lent. Keeps its identity.
        window: bytes of a window; the first begins with the file.
    """

    window = WINDOW

    def __init__(
        self, fd: int, file: mmap.mmap, loop: asyncio.AbstractEventLoop, look: float
    ) -> None:
        self.view = memoryview(file)
        self.resident: set[int] = set()
        self._considered: set[int] = set()
        self._size = len(file)
        self._fd = fd
        self._file: mmap.mmap | None = file
        self._loop = loop
        self._faults = major_faults()
        self._scratch = bytearray(WINDOW)
        self._rest = look
        self._look = loop.call_later(look, self._look_again)

    @classmethod
    def of(cls, fd: int, loop: asyncio.AbstractEventLoop, *, look: float = _LOOK) -> FileMap | None:
        """A map of a file that is open for reading only; None if it cannot be had safely.

        That is so without RWF_NOWAIT, without a lease (a stranger's file, one that is open for
        writing, a network file system), and for what has no bytes.
        """
        if not NOWAIT or not _take_lease(fd):
            return None
        try:
            file = mmap.mmap(fd, os.fstat(fd).st_size, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError):
            _give_up_lease(fd)
            return None
        return cls(fd, file, loop, look)

    def probe(self, offset: int, length: int) -> bool:
        """Whether ``[offset, offset + length)``, inside the file, may be lent now.

        Windows that nobody has looked at are looked at, which brings them to mind if they are in
        the cache. Never blocks.
        """
        if offset + length > self._size:
            return False
        for number in range(offset // WINDOW, -(-(offset + length) // WINDOW)):
            if number not in self.resident:
                start = number * WINDOW
                try:
                    got = preadv(self._fd, [self._scratch], start, NOWAIT)
                except OSError:
                    return False
                if got != min(WINDOW, self._size - start):
                    return False
                if got == WINDOW:  # the file's last may be shorter: it is looked at every time
                    self._remember(number)
        return True

    def consider(self, offset: int) -> None:
        """Probe the window that ``offset`` is in, unless that has been done a moment ago.

        For who has just read there another way: looking takes longer than that read did.
        """
        number = offset // WINDOW
        if number not in self._considered and len(self._considered) < _MOST_WINDOWS:
            self._considered.add(number)
            self.probe(offset, 1)

    def _remember(self, number: int) -> None:
        if len(self.resident) >= _MOST_WINDOWS:
            self.resident.clear()
        self.resident.add(number)

    def refresh(self) -> None:
        """Look whether the lease is wanted back, and whether pages have left the cache."""
        faults = major_faults()
        if faults != self._faults:
            self._faults = faults
            self.resident.clear()
        if self._file is not None and fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            self._stop_lending()
            self._release()

    def _look_again(self) -> None:
        self.refresh()
        self._considered.clear()
        if self._file is not None:
            self._look = self._loop.call_later(self._rest, self._look_again)

    def _stop_lending(self) -> None:
        self._size = 0
        self.resident.clear()
        self.view.release()
        self.view = memoryview(b"")

    def _release(self) -> None:
        """Unmap and give the lease up, unless somebody still has a view."""
        assert self._file is not None
        with suppress(BufferError):
            self._file.close()
            self._file = None
            _give_up_lease(self._fd)

    def close(self) -> None:
        """Lend nothing any more; the map goes with its last view. Idempotent."""
        self._look.cancel()
        if self._file is not None:
            self._stop_lending()
            self._release()
            self._file = None


def _take_lease(fd: int) -> bool:
    """Take a read lease, without the signal that the kernel would send when it is wanted back."""
    try:
        # Between taking the lease and leaving the signal to nobody, it is one that is ignored.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETOWN, 0)
    except OSError:
        return False
    return True


def _give_up_lease(fd: int) -> None:
    with suppress(OSError):  # the kernel may have taken it
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
