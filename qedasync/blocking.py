"""Disks for a program without an event loop: each call blocks until it is done.

Who has one disk to look at, and nothing to do meanwhile, need not wait for asyncio to load, which
takes longer than the look. Over a storage that never suspends (``open_storage(...,
storage="blocking")``) nothing here does either, but to give a loop its turn if there is one. One
coroutine at a time uses such a disk; nobody counts who is inside, and there is no cache to share.

Everything that takes more than this, a backing file, a repair, writes of data, is for
:func:`qedasync.open`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Self

from qedasync.disk import check_range
from qedasync.engine.allocator import Allocator
from qedasync.engine.extents import Extent
from qedasync.engine.header_file import HeaderFile
from qedasync.engine.l2_cache import L2Cache
from qedasync.engine.metadata import Metadata, load_metadata
from qedasync.engine.request import Reader
from qedasync.engine.sources import RawSource
from qedasync.engine.stats import Stats
from qedasync.engine.status import Mapper, joined_batches
from qedasync.engine.tables import Tables
from qedasync.errors import RequestError
from qedasync.format.header import usable_file_size, whole_sectors
from qedasync.storage.base import Storage

if TYPE_CHECKING:
    from qedasync.check import CheckResult

__all__ = ["BlockingDisk", "BlockingImage", "BlockingRaw"]

_L2_CACHE_BYTES = 32 << 20


class BlockingDisk(ABC):
    """What an image and a raw file have in common: a part of ``Disk``, with its promises.

    Attributes:
        path: as the caller names it.
        size: guest-visible bytes.
        storage: its file.
    """

    def __init__(self, storage: Storage, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self.storage = storage

    async def readinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on; answers its length in bytes.

        Raises:
            RequestError: the range is not inside the disk.
            StorageError, CorruptTable: the bytes cannot be had.
        """
        length = len(buffer)
        check_range("disk", offset, length, self.size)
        if length:
            await self._read(buffer, offset)
        return length

    async def block_status(self, offset: int, length: int) -> list[Extent]:
        """What ``[offset, offset + length)`` is made of: runs in order, without gaps.

        Raises: as :meth:`readinto`.
        """
        check_range("disk", offset, length, self.size)
        return await self._status(offset, length) if length else []

    @abstractmethod
    def extents(self) -> AsyncGenerator[Extent, None]:
        """The runs of the whole disk, looked up as one goes."""

    @abstractmethod
    async def truncate(self, size: int) -> None:
        """Set the size, a multiple of 512; a larger disk reads as zeroes there. Durable on return.

        Raises:
            RequestError: the disk cannot have that size.
            StorageError, CorruptTable: it could not be done; the size is the old one.
        """

    async def close(self) -> None:
        """Release the file."""
        await self.storage.close()

    @abstractmethod
    async def _read(self, buffer: bytearray | memoryview, offset: int) -> None: ...

    @abstractmethod
    async def _status(self, offset: int, length: int) -> list[Extent]: ...


class BlockingImage(BlockingDisk):
    """A QED image without a backing file; made by :meth:`open`.

    Attributes:
        header_file: the header.
        failure: why nothing more is to be written, or None.
    """

    def __init__(self, storage: Storage, path: str, found: Metadata, *, writable: bool) -> None:
        super().__init__(storage, path, found.header.image_size)
        self.failure: BaseException | None = None
        self._geometry = geometry = found.geometry
        self.header_file = HeaderFile(storage, found.header)
        self._tables = Tables(
            storage,
            geometry,
            found.l1,
            L2Cache(_L2_CACHE_BYTES),
            Allocator(geometry, usable_file_size(storage.size, geometry.cluster_size)),
            None,
            Stats(),
            guard=writable,
        )
        self._mapper = Mapper(self._tables, path)
        self._reader = Reader(storage, self._tables, alone=True)

    @classmethod
    async def open(
        cls, storage: Storage, path: str, *, writable: bool = False, backing: bool = True
    ) -> Self | None:
        """The image in ``storage``, which it owns from then on.

        Args:
            backing: False leaves a backing file out: nothing shows through.

        Returns: None if there is more to it: it has a backing file; or, to be written, was not
            closed cleanly or has unknown autoclear bits. The storage stays open then.

        Raises:
            FormatError: not a usable image. The storage stays open.
            StorageError: it cannot be read. The storage stays open.
        """
        found = await load_metadata(storage)
        header = found.header
        is_unclean = header.need_check or header.unknown_autoclear
        if (backing and header.has_backing) or (writable and is_unclean):
            return None
        return cls(storage, path, found, writable=writable)

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster: what is allocated at once."""
        return self._geometry.cluster_size

    def extents(self) -> AsyncGenerator[Extent, None]:
        return joined_batches(self._mapper.batches(0, self.size))

    async def check(self, *, progress: Callable[[int, int], None] | None = None) -> CheckResult:
        """Look at every table entry; as :meth:`qedasync.Image.check` without a repair."""
        from qedasync.check import look_over

        return await look_over(self.storage, self.header_file.header, self._geometry, progress)

    async def truncate(self, size: int) -> None:
        from qedasync.engine.resize import Grower, check_new_size

        check_new_size(self._geometry, self.size, size)
        if size == self.size:
            return
        grower = Grower(self.storage, self._tables, None, self.header_file)
        await grower.prepare(size)
        await self.sync()
        await grower.finish(size)
        self.size = size
        await self.sync()

    async def change_backing_file(self, name: str | None, format: str | None = None) -> None:
        """Record another backing file's name, or none; as that of :class:`qedasync.Image`.

        Raises:
            RequestError: the name cannot be recorded.
            StorageError: the header could not be written; the old name stands.
        """
        from qedasync.chain.name import write_name

        await write_name(self, name, format == "raw")

    async def sync(self) -> None:
        """Make what has been written durable."""
        await self.storage.flush()

    def fail(self, error: BaseException) -> None:
        """Remember that the outcome of a write is unknown."""
        self.failure = error

    async def _read(self, buffer: bytearray | memoryview, offset: int) -> None:
        await self._reader.read_into([buffer], offset, len(buffer))

    async def _status(self, offset: int, length: int) -> list[Extent]:
        return await self._mapper.block_status(offset, length)


class BlockingRaw(BlockingDisk):
    """A raw file: a disk of whole sectors, of which the last may be longer than the file."""

    def __init__(self, storage: Storage, path: str) -> None:
        """``storage`` is owned from here on."""
        super().__init__(storage, path, whole_sectors(storage.size))
        self._source = RawSource(storage, path)

    async def extents(self) -> AsyncGenerator[Extent, None]:
        pos = 0
        while pos < self.size:
            for run in await self._source.first_sectors(pos, self.size - pos):
                yield run
                pos = run.end

    async def truncate(self, size: int) -> None:
        if size < 0 or size != whole_sectors(size):
            raise RequestError(f"a disk cannot have {size} bytes", length=size, size=self.size)
        await self.storage.truncate(size)
        self.size = size
        await self.storage.flush()

    async def _read(self, buffer: bytearray | memoryview, offset: int) -> None:
        await self.storage.read_into([buffer], offset)

    async def _status(self, offset: int, length: int) -> list[Extent]:
        return await self._source.sectors(offset, length)
