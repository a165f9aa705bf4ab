"""Buffers for long reads and writes, used again and again.

Memory that comes and goes in large pieces is fresh from the host each time, and the host clears it
page by page: that takes longer than reading the data.
"""

from __future__ import annotations

from collections import defaultdict

__all__ = ["BufferPool"]

_SHORT, _LONG = 64 << 10, 4 << 20  # what is not between them is not worth keeping
_KEPT_BYTES = 16 << 20


class BufferPool:
    """Buffers of some sizes, kept for the next one who needs one.

    Args:
        limit: bytes that are kept at most while nobody needs them.
    """

    def __init__(self, limit: int = _KEPT_BYTES) -> None:
        self._limit = limit
        self._free: defaultdict[int, list[bytearray]] = defaultdict(list)
        self._kept = 0

    def take(self, length: int) -> memoryview:
        """``length`` bytes, with anything in them."""
        if not _SHORT < length <= _LONG:
            return memoryview(bytearray(length))
        size = 1 << (length - 1).bit_length()
        free = self._free[size]
        if not free:
            return memoryview(bytearray(size))[:length]
        self._kept -= size
        return memoryview(free.pop())[:length]

    def give(self, view: memoryview) -> None:
        """Take back what :meth:`take` gave, and nobody uses any more."""
        whole = view.obj
        if not isinstance(whole, bytearray) or not _SHORT < len(view) <= _LONG:
            return
        if self._kept + len(whole) <= self._limit:
            self._free[len(whole)].append(whole)
            self._kept += len(whole)
