"""An NBD export as the place of a new image: it is there already, as large as it is."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from qedasync.cli.options import ToolError

if TYPE_CHECKING:
    from qedasync.cli.nodes import Access, Node

__all__ = ["create_on_export", "is_export", "open_export"]

_SECTOR = 512


def is_export(name: str) -> bool:
    """Whether a name is that of an NBD export."""
    if ":" not in name:
        return False  # nothing has been imported to find out
    from qedasync.cli.nodes.spec import protocol_of

    with suppress(ToolError):
        return protocol_of(name) == "nbd"
    return False


async def open_export(name: str, fmt: str, size: int, access: Access) -> Node:
    """Open what is to be the new image.

    Raises:
        ToolError: it cannot be one; why, in qemu-img's words, without the name.
    """
    from qedasync.cli.nodes import open_node

    try:
        node = await open_node(name, "raw", access)
    except ToolError as error:
        why = str(error).removeprefix(f"Could not open '{name}': ")
        raise ToolError(
            "Protocol driver 'nbd' does not support image creation, and opening the image failed:"
            f" {why}"
        ) from error
    if fmt == "raw" and node.disk.size >= size:
        return node
    await node.close()
    raise ToolError(f"Cannot {'grow' if fmt == 'raw' else 'resize'} NBD nodes")


async def create_on_export(name: str, fmt: str, size: int, mode: str, access: Access) -> None:
    """Make a raw disk of an export: of its beginning, so that no format is seen in it.

    Differs from QEMU: it does that before it refuses to put an image there.

    Args:
        mode: of preallocation.

    Raises:
        ToolError: it cannot be done; in qemu-img's words.
    """
    from qedasync.cli.witness import closing, reason
    from qedasync.errors import QEDError

    if mode != "off":
        raise ToolError(f"{name}: Unsupported preallocation mode '{mode}'")
    try:
        node = await open_export(name, fmt, size, access)
    except ToolError as error:
        raise ToolError(f"{name}: {error}") from error
    async with closing(node):
        try:
            await node.disk.write_zeroes(min(_SECTOR, node.disk.size), 0)
            await node.disk.flush()
        except QEDError as error:
            raise ToolError(
                f"{name}: Failed to clear the new image's first sector: {reason(error)}"
            ) from error
