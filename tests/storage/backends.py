"""The storages that the contract binds, each opened on a file of its own with given content."""

from __future__ import annotations

import asyncio
import errno
import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qedasync.disk import Disk, DiskStorage
from qedasync.errors import StorageError
from qedasync.image import open_image
from qedasync.raw import open_raw
from qedasync.storage.aiofiles import AiofilesStorage
from qedasync.storage.base import Storage
from qedasync.storage.faults import FaultStorage
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import RecorderStorage
from qedasync.storage.workers import Workers
from tests.helpers.model import blank

if TYPE_CHECKING:  # there are none of these on other platforms
    from qedasync.storage.direct import DirectStorage
    from qedasync.storage.kernel_io import MakeQueue
    from qedasync.storage.posix import PosixStorage

PORTABLE = ("memory", "memory-async", "aiofiles")
LINUX = (
    ("posix", "posix-threads", "posix-ring", "direct", "direct-aio", "direct-threads", "blocking")
    if sys.platform == "linux"
    else ()
)
PLAIN = PORTABLE + LINUX
DISKS = ("disk-raw", "disk-qed")
"""Files that lie in a disk."""
BACKENDS = (
    *PLAIN,
    *DISKS,
    *(f"{wrapper}+{name}" for wrapper in ("faults", "recorder") for name in PLAIN),
)


@dataclass
class Backend:
    """One kind of storage, and a place for its files."""

    name: str
    directory: Path
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @asynccontextmanager
    async def open(self, initial: bytes = b"") -> AsyncIterator[Storage]:
        """A new storage whose content is ``initial``; closed at the end."""
        wrapper, _, name = self.name.rpartition("+")
        storage = await self._inner(name, initial)
        if wrapper == "faults":
            storage = FaultStorage(storage)
        elif wrapper == "recorder":
            storage = await RecorderStorage.over(storage)
        try:
            yield storage
        finally:
            await storage.close()

    async def _inner(self, name: str, initial: bytes) -> Storage:
        if name in DISKS:
            return await in_disk(name, initial)
        if name.startswith("memory"):
            return MemoryStorage(initial, inline=name == "memory")
        path = self.directory / f"{next(self._numbers)}.img"
        path.write_bytes(initial)
        if name == "aiofiles":
            return await AiofilesStorage.open(path, writable=True)
        # There are none of these on other platforms.
        from qedasync.storage.blocking import BlockingStorage
        from qedasync.storage.direct import DirectStorage
        from qedasync.storage.kernel_io import aio_queue
        from qedasync.storage.posix import PosixStorage

        if name == "blocking":
            return BlockingStorage.open(path, writable=True)
        if name == "posix-threads":
            return threaded(path)
        if name == "posix-ring":
            return ring(path)
        if name == "posix":
            return await PosixStorage.open(path, writable=True)
        try:
            if name == "direct":
                return await DirectStorage.open(path, writable=True)
            return direct(path, aio_queue if name == "direct-aio" else no_queue)
        except StorageError as error:
            if error.errno != errno.EINVAL:
                raise
            pytest.skip("the file system of the temporary directory has no O_DIRECT")


async def in_disk(name: str, initial: bytes) -> Storage:
    """A file in a raw disk, or in an image; both in memory."""
    disk: Disk
    if name == "disk-raw":
        disk = await open_raw("disk", "r+", storage=MemoryStorage(inline=False))
    else:
        disk = await open_image("disk", "r+", storage=MemoryStorage(blank(0, 65536, 4)))
    storage = DiskStorage(disk)
    await storage.write([initial], 0)
    return storage


def threaded(path: Path) -> Storage:
    """A posix storage that takes its file for a distant one: no write is made inline."""
    from qedasync.storage.host import open_file
    from qedasync.storage.posix import PosixStorage

    loop = asyncio.get_running_loop()
    file = open_file(str(path), True, False, False, None)._replace(local=False)
    return PosixStorage(file, str(path), loop, Workers(loop, 8, "qedasync-io"))


def ring(path: Path) -> PosixStorage:
    """A posix storage that takes every read for one that would block, and has a ring for them."""
    from qedasync.storage.host import open_file
    from qedasync.storage.posix import PosixStorage

    loop = asyncio.get_running_loop()
    file = open_file(str(path), True, False, False, None)._replace(nowait=False)
    workers = Workers(loop, 8, "qedasync-io")
    storage = PosixStorage(file, str(path), loop, workers, ring_from=1)
    storage.start_read(0, 0)
    return storage


def direct(path: Path, make_queue: MakeQueue) -> DirectStorage:
    """A storage past the page cache, with this way to the kernel."""
    from qedasync.storage.direct import DirectStorage
    from qedasync.storage.host import open_file

    loop = asyncio.get_running_loop()
    file = open_file(str(path), True, True, False, None)
    workers = Workers(loop, 8, "qedasync-io")
    return DirectStorage(file, str(path), loop, workers, make_queue=make_queue)


def no_queue(fd: int, data: object) -> None:
    """What a host has that takes no requests without a thread."""


async def content(storage: Storage) -> bytes:
    """All bytes of the storage."""
    return await read(storage, 0, storage.size)


async def read(storage: Storage, offset: int, length: int) -> bytes:
    """Bytes of the storage, read into a buffer that was not zero before."""
    buffer = bytearray(b"\xee" * length)
    await storage.read_into([buffer], offset)
    return bytes(buffer)
