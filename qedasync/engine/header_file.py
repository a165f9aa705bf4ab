"""The header as it is on disk; changed there first, and here only after that went well."""

from __future__ import annotations

from qedasync.events import Event
from qedasync.format.header import Header
from qedasync.storage.base import Storage

__all__ = ["HeaderFile"]


class HeaderFile:
    """Owns the header of one image.

    Attributes:
        header: what is on disk, as far as anybody knows.
    """

    def __init__(self, storage: Storage, header: Header) -> None:
        self.header = header
        self._storage = storage

    async def update(self, header: Header, extra: bytes = b"") -> None:
        """Replace the header, and what follows it if ``extra`` is given (a backing file's name).

        Only these bytes are written: whatever else lies in the header's clusters survives.

        Raises:
            StorageError: the write failed; :attr:`header` still holds the old one.

        Locks: the caller holds the allocating turn. Order: not flushed here.
        """
        await self._storage.write([header.pack() + extra], 0, Event.HEADER_UPDATE)
        self.header = header
