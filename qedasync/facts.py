"""What a file says of itself, for who will not read what is in it.

Without an engine or an event loop: over a storage that never suspends, nothing here does either.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from qedasync.engine.metadata import load_metadata
from qedasync.format.header import Features, whole_sectors
from qedasync.storage.base import Storage

__all__ = ["DiskFacts"]


class DiskFacts(NamedTuple):
    """An image's or a raw file's facts, under the names that an open one has them by.

    Attributes:
        storage: the file, owned from here on.
        path: as the caller names it.
        size: guest-visible bytes.
        cluster_size: bytes; None of a raw file.
        features: the header's feature bits; none of a raw file.
        backing_file, backing_format: as an image records them, or None.
    """

    storage: Storage
    path: str
    size: int
    cluster_size: int | None = None
    features: Features = Features(0)
    backing_file: str | None = None
    backing_format: str | None = None

    @classmethod
    async def of_image(cls, storage: Storage, path: str) -> Self:
        """What an image says. Reads what opening it would read, and raises what that would.

        Raises:
            FormatError: not a usable image. The storage stays open.
            StorageError: it cannot be read. The storage stays open.
        """
        header, geometry, name, _ = await load_metadata(storage)
        return cls(
            storage,
            path,
            header.image_size,
            geometry.cluster_size,
            Features(header.features),
            name,
            "raw" if header.backing_is_raw else None,
        )

    @classmethod
    def of_raw(cls, storage: Storage, path: str) -> Self:
        """What is known of a raw file."""
        return cls(storage, path, whole_sectors(storage.size))

    async def close(self) -> None:
        """Release the file."""
        await self.storage.close()
