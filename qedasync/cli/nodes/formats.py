"""What lies in a file: found by how it begins; the raw format, which is all or part of it, and
formats that are not ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import qedasync
from qedasync.cli.nodes.layer import FOREIGN, FORMATS, How, Layer
from qedasync.cli.nodes.values import Options, refuse_rest, size
from qedasync.cli.options import ToolError

__all__ = ["open_foreign", "open_raw_node", "probe", "recorded_backing"]


async def probe(storage: qedasync.Storage) -> str:
    """The format by what the file begins with.

    Raises:
        ToolError: it is one that nobody here can open: no raw disk, whatever it is.
    """
    head = bytearray(512)
    try:
        await storage.read_into([head], 0, qedasync.Event.HEADER_LOAD)
    except qedasync.StorageError as error:
        raise ToolError(
            f"Could not read image for determining its format: {error.strerror}"
        ) from error
    found = qedasync.identify(head)
    if found not in FORMATS + FOREIGN:
        raise ToolError(f"Unknown driver '{found}'")
    return found


async def open_foreign(driver: str, below: Layer, how: How, backing: Any) -> Layer:
    """An image of another format for reading, by means of qemu-nbd; the file below is closed.

    Args:
        backing: which files it may name; False leaves its backing file closed.

    Raises:
        ToolError, QEDError: it cannot be opened, or not in this way.
    """
    if how.writable:
        raise ToolError(f"{driver} images are opened for reading only")
    if below.driver not in ("file", "host_device"):
        raise ToolError(f"{driver} images are opened only where they are files")
    from qedasync import nbd

    disk = await nbd.foreign(below.file, driver, backing=backing, lock=not how.force_share)
    await below.storage.close()
    return replace(
        below,
        driver=driver,
        storage=qedasync.DiskStorage(disk),
        options={"driver": driver, "file": below.options},
        disk=disk,
    )


def open_raw_node(below: Layer, options: Options) -> Layer:
    """The raw format over a file; it takes the file's place.

    Raises:
        ToolError: the part that the options say is not there.
    """
    given: Options = {key: options[key] for key in ("offset", "size") if key in options}
    room = below.storage.size
    offset, length = size(options, "offset", 0), size(options, "size", -1)
    if offset > room:
        raise ToolError(
            f"Offset ({offset}) cannot be greater than size of the containing file ({room})"
        )
    if length > room - offset:
        raise ToolError(
            f"The sum of offset ({offset}) and size ({length}) has to be smaller or equal to the "
            f" actual size of the containing file ({room})"
        )
    if length % 512 and length >= 0:
        raise ToolError("Specified size is not multiple of 512")
    refuse_rest("raw", options, protocol=False)
    storage = below.storage
    if offset or length >= 0:
        from qedasync.cli.nodes.window import Window

        storage = Window(storage, offset, length if length >= 0 else None)
    return replace(
        below,
        driver="raw",
        storage=storage,
        options={**given, "driver": "raw", "file": below.options},
        exact="" if given else below.exact_protocol,
        disk=None,
        shift=offset,
        holder=below.holder and below.holder._replace(start=below.holder.start + offset),
    )


async def recorded_backing(storage: qedasync.Storage) -> tuple[str | None, str | None]:
    """The backing file's name and format that the image in a storage has recorded."""
    from qedasync.cli.nodes.window import Borrowed

    async with qedasync.open("", storage=Borrowed(storage), backing=False) as image:
        return image.backing_file, image.backing_format
