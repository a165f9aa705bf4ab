"""Copy-on-read: what is read from the backing file is kept in the image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import qedasync

__all__ = ["CopyOnRead"]


class CopyOnRead:
    """A disk around an image; all but the reads are the image's own."""

    def __init__(self, image: Any) -> None:
        self._image = image

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image, name)

    async def pread(self, length: int, offset: int) -> bytearray:
        """As the image's; and the clusters it touched are the image's own afterwards."""
        data: bytearray = await self._image.pread(length, offset)
        await self._keep(offset, length)
        return data

    async def preadv(self, buffers: Iterable[Any], offset: int) -> int:
        """As :meth:`pread`."""
        views = list(buffers)
        length: int = await self._image.preadv(views, offset)
        await self._keep(offset, length)
        return length

    async def readinto(self, buffer: Any, offset: int) -> int:
        """As :meth:`pread`."""
        return await self.preadv((buffer,), offset)

    async def _keep(self, offset: int, length: int) -> None:
        size = self._image.cluster_size
        start = offset // size * size
        end = min(-(-(offset + length) // size) * size, self._image.size)
        if start >= end:
            return
        for run in await self._image.block_status(start, end - start):
            if run.kind is qedasync.ExtentKind.BACKING:
                data = await self._image.pread(run.length, run.start)
                await self._image.pwrite(data, run.start)
