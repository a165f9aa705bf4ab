"""Cutting a list of buffers laid end to end."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["cut"]


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
