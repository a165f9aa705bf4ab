"""What lies in a file: found by how it begins, and the raw format, which is all or part of it."""

from __future__ import annotations

from dataclasses import replace

import qedasync
from qedasync.cli.nodes.layer import Layer
from qedasync.cli.nodes.values import Options, refuse_rest, size
from qedasync.cli.options import ToolError

__all__ = ["open_raw_node", "probe", "recorded_backing"]

_FOREIGN = {  # what a file of another format begins with: not to be taken for a raw disk
    b"QFI\xfb\0\0\0\1": "qcow",
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"conectix": "vpc",
    b"vhdxfile": "vhdx",
    b"LUKS\xba\xbe": "luks",
    b"WithoutFreeSpace": "parallels",
    b"WithouFreSpacExt": "parallels",
    b"Bochs Virtual HD Image": "bochs",
}
_VDI_OFFSET, _VDI = 64, b"\x7f\x10\xda\xbe"


async def probe(storage: qedasync.Storage) -> str:
    """The format by what the file begins with.

    Raises:
        ToolError: it is one that we do not know: no raw disk, whatever it is.
    """
    head = bytearray(512)
    try:
        await storage.read_into([head], 0, qedasync.Event.HEADER_LOAD)
    except qedasync.StorageError as error:
        raise ToolError(
            f"Could not read image for determining its format: {error.strerror}"
        ) from error
    if head.startswith(b"QED\0"):
        return "qed"
    found = [driver for magic, driver in _FOREIGN.items() if head.startswith(magic)]
    if head.startswith(_VDI, _VDI_OFFSET):
        found.append("vdi")
    if found:
        raise ToolError(f"Unknown driver '{found[0]}'")
    return "raw"


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
    )


async def recorded_backing(storage: qedasync.Storage) -> tuple[str | None, str | None]:
    """The backing file's name and format that the image in a storage has recorded."""
    from qedasync.cli.nodes.window import Borrowed

    async with qedasync.open("", storage=Borrowed(storage), backing=False) as image:
        return image.backing_file, image.backing_format
