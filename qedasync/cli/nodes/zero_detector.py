"""Zeroes that are found in what is written: ``detect-zeroes=on``."""

from __future__ import annotations

from collections.abc import Iterable

from qedasync.cli.nodes.disk_filter import DiskFilter

__all__ = ["ZeroDetector"]


class ZeroDetector(DiskFilter):
    """A disk where a write of nothing but zeroes becomes a zero write."""

    async def pwritev(self, buffers: Iterable[bytes | bytearray | memoryview], offset: int) -> int:
        views = list(buffers)
        length = sum(map(len, views))
        if not length or any(map(_has_data, views)):
            return await super().pwritev(views, offset)
        await self.write_zeroes(length, offset)
        return length


def _has_data(buffer: bytes | bytearray | memoryview) -> bool:
    content = bytes(buffer)
    return content.count(0) != len(content)
