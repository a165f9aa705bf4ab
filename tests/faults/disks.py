"""Small disks in memory for tests that look at one thing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest

from qedasync.engine.source import Source
from qedasync.errors import ImageFailed
from qedasync.format.header import Header
from qedasync.image import Image, open_image
from qedasync.storage.base import Storage
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.faults.guest import CLUSTER, blank

__all__ = ["SIZE", "content_of", "disk_on", "filled", "header_of", "look", "turns"]

SIZE = 64 * CLUSTER


async def filled(*clusters: int, size: int = SIZE, backing: str = "") -> SparseBytes:
    """An image where each of ``clusters`` is full of its number plus one (mod 256); clean."""
    content = blank(size, backing=backing, raw=bool(backing))
    async with open_image("d", "r+", storage=MemoryStorage(content), backing=False) as disk:
        for cluster in clusters:
            await disk.pwrite(bytes([(cluster + 1) % 256]) * CLUSTER, cluster * CLUSTER)
    return content


@asynccontextmanager
async def disk_on(
    storage: Storage, *, source: Source | None = None, fails: bool = False, **options: Any
) -> AsyncIterator[Image]:
    """The disk in ``storage``, open for writing; no need-check timer unless asked for.

    Args:
        source: what is below it.
        fails: whether the image is to have failed when it is closed.
        options: for ``qedasync.open``.
    """
    options = {"need_check_timeout": 0, **options}
    disk = await open_image("d", "r+", storage=storage, backing=False, **options)
    if source is not None:
        disk._engine.attach(source)
    with pytest.raises(ImageFailed) if fails else nullcontext():
        async with disk:
            yield disk


async def look(content: SparseBytes, length: int, pos: int) -> bytes:
    """What a later user reads; the check at open finds nothing to complain about."""
    async with open_image("d", "r+", storage=MemoryStorage(content), backing=False) as disk:
        result = await disk.check()
        assert not result.corruptions
        assert not result.check_errors
        return bytes(await disk.pread(length, pos))


def content_of(storage: Storage) -> SparseBytes:
    """What is in the file, below all wrappers."""
    while not isinstance(storage, MemoryStorage):
        storage = storage.inner  # type: ignore[attr-defined]
    return storage.content


def header_of(storage: Storage) -> Header:
    """The header in the file."""
    data = bytearray(64)
    content_of(storage).read_into(data, 0)
    return Header.parse(data)


async def turns(count: int) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)
