"""A temporary overlay: what is written to it goes with the process."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

import qedasync
from qedasync.cli.nodes.layer import Holder
from qedasync.cli.nodes.opening import Node
from qedasync.cli.options import ToolError

__all__ = ["under_overlay"]


async def under_overlay(node: Node) -> Node:
    """A node under an image without a name; closes both or none.

    Differs from QEMU: it is a QED image; there it is qcow2.

    Raises:
        ToolError: the image cannot be made.
    """
    try:
        image = await _make_overlay(node)
    except BaseException as error:
        with suppress(qedasync.QEDError):
            await node.close()
        if not isinstance(error, qedasync.QEDError | OSError):
            raise
        number = getattr(error, "errno", None)
        why = os.strerror(number) if number else str(error)
        raise ToolError(f"Could not create a temporary overlay: {why}") from error
    return node._replace(disk=image, format="qed", holder=Holder(image))


async def _make_overlay(node: Node) -> qedasync.Image:
    directory = os.environ.get("TMPDIR") or "/var/tmp"
    handle, path = tempfile.mkstemp(prefix="qedasync-", suffix=".qed", dir=directory)
    os.close(handle)
    try:
        storage = await qedasync.open_storage(path, writable=True)
    finally:
        os.unlink(path)
    try:
        await qedasync.create(
            path,
            node.disk.size,
            backing_file=node.file or "base",
            backing_format="raw",
            backing_unchecked=True,
            storage=storage,
            lock=False,
        )
    except BaseException:
        await storage.close()
        raise
    return await qedasync.open(
        path, "r+", cache="unsafe", storage=storage, lock=False, backing=node.disk
    )
