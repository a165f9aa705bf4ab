"""What a file is, without opening its chain; and opening what it is."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple

import qedasync
from qedasync import Disk
from qedasync.errors import FormatError, RequestError

__all__ = ["ImageInfo", "opened", "probe"]

Format = Literal["qed", "raw"]


class ImageInfo(NamedTuple):
    """What a file says of itself.

    Attributes:
        path: as it was named.
        format: ``"qed"``, ``"raw"``, or QEMU's name of another format: ``"qcow2"``, ``"vmdk"``,
            ``"vdi"``, ``"vhdx"``, ...
        virtual_size: guest-visible bytes; None of another format, whose header is not read.
        actual_size: bytes that the file takes on the host.
        cluster_size, table_size: of a QED image; else None.
        backing_file, backing_format: as the image records them, or None.
        needs_check: it was not closed cleanly.
    """

    path: str
    format: str
    virtual_size: int | None
    actual_size: int
    cluster_size: int | None = None
    table_size: int | None = None
    backing_file: str | None = None
    backing_format: str | None = None
    needs_check: bool = False

    def json(self) -> dict[str, object]:
        """The same as a dictionary."""
        return self._asdict()


async def probe(path: str | os.PathLike[str], *, lock: bool = False) -> ImageInfo:
    """Look at a file: of which format is it, and what does it say if it is a QED image?

    Args:
        path: a regular file or block device.
        lock: take QEMU's locks while looking; a file that is being written is looked at otherwise.

    Raises:
        StorageError: it cannot be read.
        FormatError: it has QED's magic and is no usable image.
    """
    name = os.fsdecode(path)
    found = await _format_of(name)
    actual = os.stat(name).st_blocks * 512
    if found not in ("raw", "qed"):
        return ImageInfo(name, found, None, actual)
    if found == "raw":
        async with qedasync.open_raw(name, lock=lock) as raw:
            return ImageInfo(name, "raw", raw.size, actual)
    async with qedasync.open(name, lock=lock, backing=False) as image:
        return ImageInfo(
            name,
            "qed",
            image.size,
            actual,
            image.cluster_size,
            image.table_size,
            image.backing_file,
            image.backing_format,
            bool(image.features & qedasync.Features.NEED_CHECK),
        )


async def _format_of(path: str) -> str:
    storage = await qedasync.open_storage(path)
    try:
        head = bytearray(512)
        await storage.read_into([head], 0)
    finally:
        await storage.close()
    return qedasync.identify(head)


@asynccontextmanager
async def opened(
    what: Disk | str | os.PathLike[str],
    fmt: Format | None,
    backing: Literal["auto", "any"] | bool = "auto",
) -> AsyncIterator[Disk]:
    """A disk to read from; one that is given stays open, a file is closed again.

    Raises:
        FormatError: the file is an image of another format, and nobody says that it is raw.
    """
    if not isinstance(what, str | os.PathLike):
        yield what
        return
    if fmt not in (None, "qed", "raw"):
        raise RequestError(f"the format is {fmt!r}; it must be 'qed', 'raw' or None")
    path = os.fsdecode(what)
    found = fmt or await _format_of(path)
    if found not in ("raw", "qed"):
        raise FormatError(
            f"{path!r} is a {found} image; qedasync.nbd.foreign({path!r}) opens it by means of"
            ' qemu-nbd, and format "raw" takes it for a raw disk',
            errno=errno.ENOTSUP,
            field="format",
        )
    if found == "raw":
        async with qedasync.open_raw(path) as raw:
            yield raw
    else:
        async with qedasync.open(path, backing=backing) as image:
            yield image
