"""The backing file's name in the header, changed so that no crash leaves a name nobody wrote.

The header's fields lie in the file's first sector, and a sector is written whole or not at all. So
what the new name has behind that sector is written first, where neither the old name nor anything
else is, and flushed; then one write of the first sector makes it the name. A name that ends in the
first sector needs just the latter.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from qedasync.chain.undo import MayFail, undone
from qedasync.engine.header_file import HeaderFile
from qedasync.errors import RequestError
from qedasync.events import Event
from qedasync.format.header import (
    COMPAT_FEATURE_MASK,
    HEADER_BYTES,
    MAX_BACKING_NAME,
    SECTOR_BYTES,
    Features,
    Header,
    encode_backing_name,
    whole_sectors,
)
from qedasync.storage.base import Storage

if TYPE_CHECKING:
    from qedasync.engine.core import Engine

__all__ = ["HasHeader", "change_name", "plan_name", "write_name"]


class HasHeader(MayFail, Protocol):
    """What a name is written to: an engine, or an image that nobody else uses."""

    storage: Storage
    header_file: HeaderFile

    async def sync(self) -> None:
        """Make what has been written durable."""
        ...


async def change_name(engine: Engine, name: str | None, is_raw: bool) -> None:
    """Record another backing file's name, or none, and nothing else. Durable on return.

    The open image goes on reading from what it has open; the name counts from the next open.

    Raises:
        RequestError: there is no room for the name (``errno`` ENOSPC), or it is no name.
        StorageError: it could not be written; the old name stands.
        ReadOnly, ImageFailed, ImageClosed: the image takes no writes.

    Cancellation: may stop before start; else runs to the end, then raises.
    """
    engine.check_writable()
    async with engine.job, engine.exclusive():
        engine.check_writable()
        await engine.tasks.run(write_name(engine, name, is_raw), "backing file's name")
        engine.backing_name = name


def plan_name(header: Header, name: str | None, is_raw: bool) -> tuple[Header, bytes]:
    """The header that records ``name`` in the place of the old one, and the name's bytes.

    Raises:
        RequestError: the name cannot be recorded.
    """
    both = Features.BACKING_FILE | Features.BACKING_FORMAT_NO_PROBE
    if name is None:
        header = header.with_features(clear=both)
        return replace(header, backing_filename_offset=HEADER_BYTES, backing_filename_size=0), b""
    data = encode_backing_name(name)
    unknown = header.compat_features & ~COMPAT_FEATURE_MASK
    if unknown:
        raise RequestError(
            f"compat feature bits {unknown:#x} are unknown, so nobody here can tell what else lies"
            " where a backing file's name would go",
            errno=errno.ENOTSUP,
        )
    offset = _place(header, len(data))
    bits = Features.BACKING_FILE | (Features.BACKING_FORMAT_NO_PROBE if is_raw else 0)
    header = header.with_features(set=bits, clear=both)
    return replace(header, backing_filename_offset=offset, backing_filename_size=len(data)), data


def _place(header: Header, length: int) -> int:
    """Where a name of ``length`` bytes goes: right behind the header, as in QEMU, if it may.

    Differs from QEMU: it takes names of 4096 bytes and more, and cannot open the image any more
    (dossier Q16); and it writes over the old name, so that a crash may leave a mixture of both.
    """
    room = header.header_size * header.cluster_size
    if not 1 <= length <= MAX_BACKING_NAME:
        number = errno.ENAMETOOLONG if length else errno.EINVAL
        text = f"the backing file's name has {length} bytes; it must have 1 to {MAX_BACKING_NAME}"
        raise RequestError(text, length=length, errno=number)
    if HEADER_BYTES + length > room:
        raise _no_space(f"the name has {length} bytes, there are {room - HEADER_BYTES}", length)
    start = header.backing_filename_offset
    end = start + header.backing_filename_size if header.has_backing else 0
    in_sectors = whole_sectors(end)
    for offset in (HEADER_BYTES, in_sectors, end, room - length):
        first, stop = max(offset, SECTOR_BYTES), offset + length
        if offset >= HEADER_BYTES and stop <= room and (first >= end or stop <= max(start, first)):
            return offset
    raise _no_space(
        f"the name has {length} bytes and must not lie on the old one, which has {end - start}, as"
        f" long as that counts; there are {room - HEADER_BYTES} bytes for both. Record a short name"
        " of the old file first",
        length,
    )


def _no_space(why: str, length: int) -> RequestError:
    return RequestError(
        f"No space left in the file header: {why}", length=length, errno=errno.ENOSPC
    )


async def write_name(image: HasHeader, name: str | None, is_raw: bool) -> None:
    """Put the header that :func:`plan_name` gives on disk, durably.

    Raises:
        RequestError: as there.
        StorageError: the old header has been put back; if even that failed, the image has failed.

    Locks: the caller holds the allocating turn. Order: flushed before the header, and after it.
    """
    header, data = plan_name(image.header_file.header, name, is_raw)
    offset = header.backing_filename_offset
    inside = max(0, SECTOR_BYTES - offset)  # of the name, in the header's own sector
    if data[inside:]:
        at = max(offset, SECTOR_BYTES)
        await image.storage.write([data[inside:]], at, Event.HEADER_UPDATE)
        await image.sync()
    await _write_sector(image, header, data[:inside])
    await image.sync()


async def _write_sector(image: HasHeader, header: Header, name: bytes) -> None:
    """Write the header and the part of the name right behind it; undone if it fails."""
    old = bytearray(HEADER_BYTES + len(name))
    await image.storage.read_into([old], 0, Event.HEADER_LOAD)
    async with undone(image, partial(image.storage.write, [old], 0, Event.HEADER_UPDATE)):
        await image.header_file.update(header, name)
