"""Lists of buffers laid end to end: cut, and filled with zeroes."""

from __future__ import annotations

from collections.abc import Sequence

from qedasync.storage.base import ReadBuffers

__all__ = ["cut", "zero"]


def cut(
    buffers: Sequence[bytes | bytearray | memoryview], start: int, length: int
) -> list[memoryview]:
    """Views of ``length`` bytes of ``buffers`` from their ``start``-th byte on; nothing is
    copied."""
    views: list[memoryview] = []
    for buffer in buffers:
        size = len(buffer)
        if start >= size:
            start -= size
            continue
        if length <= 0:
            break
        view = memoryview(buffer)[start : start + length]
        views.append(view)
        length -= len(view)
        start = 0
    return views


def zero(buffers: ReadBuffers) -> None:
    """Fill ``buffers`` with zeroes."""
    for buffer in buffers:
        buffer[:] = bytes(len(buffer))
