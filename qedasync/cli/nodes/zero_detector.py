"""Zeroes that are found in what is written: ``detect-zeroes=on``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["ZeroDetector"]


class ZeroDetector:
    """A disk around another: a write of nothing but zeroes becomes a zero write."""

    def __init__(self, disk: Any) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    async def pwrite(self, data: Any, offset: int) -> int:
        """As the disk's."""
        return await self.pwritev((data,), offset)

    async def pwritev(self, buffers: Iterable[Any], offset: int) -> int:
        """As the disk's."""
        views = list(buffers)
        length = sum(map(len, views))
        if not length or any(map(_has_data, views)):
            return int(await self._disk.pwritev(views, offset))
        await self._disk.write_zeroes(length, offset)
        return length


def _has_data(buffer: Any) -> bool:
    content = bytes(buffer)
    return content.count(0) != len(content)
