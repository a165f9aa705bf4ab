"""A storage's file lent to threads of someone else's, for many large transfers."""

from __future__ import annotations

from collections.abc import Callable

from qedasync.storage.base import ReadBuffers, Storage, WriteBuffers
from qedasync.storage.transfer import read_fully, write_fully

__all__ = ["HostFile", "lend"]


class HostFile:
    """Blocking transfers on a descriptor; any thread may call any method, several at once.

    Whoever lends it sees to it that the descriptor stays open. Errors leave as ``OSError``.

    Args:
        note_write: called after each write, on the thread that wrote.
    """

    def __init__(self, fd: int, note_write: Callable[[], None]) -> None:
        self._fd = fd
        self._note_write = note_write
        self._reserves = True

    def read_into(self, buffers: ReadBuffers, offset: int) -> None:
        """Fill ``buffers``; past the end of the file there are zeroes."""
        read_fully(self._fd, buffers, offset)

    def write(self, buffers: WriteBuffers, offset: int) -> None:
        """Write all of ``buffers``; past the end makes the file longer."""
        write_fully(self._fd, buffers, offset)
        self._note_write()

    def reserve(self, offset: int, length: int) -> None:
        """Say that all of a range will be written now: the host then does so in less time.

        What does not help does no harm: a lack of space is for the write to report.
        """
        from qedasync.storage.libc import reserve_space  # late: few jobs need ctypes

        if self._reserves:
            self._reserves = reserve_space(self._fd, offset, length)

    def release(self, offset: int, length: int) -> None:
        """Say that a range will not be written after all: it reads as zeroes."""
        from qedasync.storage.libc import punch_hole

        if self._reserves:
            punch_hole(self._fd, offset, length)


def lend(storage: Storage) -> HostFile | None:
    """The storage's file, or None if there is no plain one behind it."""
    method = getattr(storage, "lend", None)
    file: HostFile | None = None if method is None else method()
    return file
