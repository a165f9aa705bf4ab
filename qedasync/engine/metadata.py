"""What is read of an image when it is opened: the header, its backing file's name, and L1.

Apart from the engine: who only wants to know what an image is needs no more than this.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from qedasync.events import Event
from qedasync.format.geometry import Geometry
from qedasync.format.header import HEADER_BYTES, Header, decode_backing_name, validate_header
from qedasync.format.table import SECTOR_ENTRIES, from_disk_order
from qedasync.storage.base import Storage

__all__ = ["Metadata", "load_l1", "load_metadata", "read_backing_name", "read_header"]


class Metadata(NamedTuple):
    """What an image says of itself, validated.

    Attributes:
        backing_name: as the header records it, or None.
        l1: the entries in use (see :func:`load_l1`).
    """

    header: Header
    geometry: Geometry
    backing_name: str | None
    l1: array[int]


async def load_metadata(storage: Storage) -> Metadata:
    """Read and validate all that is needed to open an image, whatever its size.

    Raises:
        FormatError: not a usable image.
        StorageError: it cannot be read.
    """
    header = await read_header(storage)
    geometry = validate_header(header, storage.size)
    name = await read_backing_name(storage, header)
    l1 = await load_l1(storage, geometry, header.image_size)
    return Metadata(header, geometry, name, l1)


async def read_header(storage: Storage) -> Header:
    """The header, parsed and not yet validated.

    Raises:
        HeaderError: there is no QED magic.
        StorageError: it cannot be read.
    """
    data = bytearray(HEADER_BYTES)
    if not storage.try_read_into([data], 0, Event.HEADER_LOAD):
        await storage.read_into([data], 0, Event.HEADER_LOAD)
    return Header.parse(data)


async def read_backing_name(storage: Storage, header: Header) -> str | None:
    """The backing file's name as the (validated) header records it, or None."""
    if not header.has_backing:
        return None
    data = bytearray(header.backing_filename_size)
    await storage.read_into([data], header.backing_filename_offset, Event.HEADER_LOAD)
    return decode_backing_name(bytes(data)) or None


async def load_l1(storage: Storage, geometry: Geometry, image_size: int) -> array[int]:
    """The part of L1 that maps ``image_size`` bytes, in whole 512-byte groups.

    The rest of L1 may be many MiB of which nothing is ever used.
    """
    used = geometry.l1_entries_used(image_size)
    count = min(-(-used // SECTOR_ENTRIES) * SECTOR_ENTRIES, geometry.table_entries)
    if not count:
        return array("Q")
    entries = array("Q", [0]) * count
    data = memoryview(entries).cast("B")  # in place: it may be of 16 MiB
    if not storage.try_read_into([data], geometry.l1_table_offset, Event.L1_LOAD):
        await storage.read_into([data], geometry.l1_table_offset, Event.L1_LOAD)
    from_disk_order(entries)
    return entries
