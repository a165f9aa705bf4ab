"""What of a file is in the page cache, asked without a copy (Linux 6.5 and later)."""

from __future__ import annotations

import mmap
from array import array

from qedasync.storage.host import NOWAIT, preadv
from qedasync.storage.syscalls import system_call

__all__ = ["Residency"]

_CACHESTAT = 451  # the same on all machines
_PAGE_BITS = mmap.PAGESIZE.bit_length() - 1


class Residency:
    """Looks at one file.

    The kernel counts a page as cached from when the device begins to fill it. So the first and the
    last byte are read as well, in a way that does not wait: the device fills pages in order.

    Args:
        fd: the file, open as long as this is used.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._call = system_call()
        self._range = array("Q", [0, 0])
        self._told = array("Q", [0] * 5)  # pages that are there, and four counts more
        self._byte = (bytearray(1),)

    def holds(self, offset: int, length: int) -> bool:
        """Whether all of a range is there; False too where the host does not say."""
        return length > 0 and self._is_cached(offset, length) and self._is_filled(offset, length)

    def _is_cached(self, offset: int, length: int) -> bool:
        if self._call is None:
            return False
        self._range[0], self._range[1] = offset, length
        where, answer = self._range.buffer_info()[0], self._told.buffer_info()[0]
        try:
            self._call(_CACHESTAT, self._fd, where, answer, 0)
        except OSError:  # this host, or this file system, has no answer, and will have none
            self._call = None
            return False
        last = offset + length - 1
        return self._told[0] == (last >> _PAGE_BITS) - (offset >> _PAGE_BITS) + 1

    def _is_filled(self, offset: int, length: int) -> bool:
        try:
            return all(
                preadv(self._fd, self._byte, place, NOWAIT) == 1
                for place in (offset, offset + length - 1)
            )
        except OSError:
            return False
