"""A new image that takes its name when it is whole.

It is made under a name of its own beside the one it is to have. What goes wrong, or stops the
program, leaves the name to what had it before, or to nothing.

Differs from QEMU: it writes under the final name, so that a conversion that was interrupted looks
like an image, and what was there before is lost.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from qedasync.cli.common import beside
from qedasync.cli.create import create_image, local_name
from qedasync.cli.export import is_export, open_export
from qedasync.cli.nodes import Access, Node, open_node
from qedasync.cli.options import ToolError
from qedasync.cli.witness import closing, reason
from qedasync.errors import ImageLocked, QEDError, StorageError
from qedasync.jobs.converting import give_name, part_beside

if TYPE_CHECKING:
    from qedasync.cli.format_options import Values

__all__ = ["NewImage", "flush", "new_image"]


class NewImage(NamedTuple):
    """What is to be made.

    Attributes:
        name: as the user gave it.
        format: ``"qed"`` or ``"raw"``.
        values: the format's options, with the size.
        doing: what error messages say after the name, as in ``"error while converting qed"``.
        access: how it is opened once it is there.
    """

    name: str
    format: str
    values: Values
    doing: str
    access: Access


@asynccontextmanager
async def new_image(wish: NewImage) -> AsyncIterator[Node]:
    """Make it, let it be written, and give it its name; durable afterwards.

    A backing file that it names is opened, whatever the policy: the user named it.

    Raises:
        ToolError: it cannot be made or opened; in qemu-img's words.
    """
    if not wish.name:
        raise _refusal(wish, f"Could not create '': {os.strerror(errno.ENOENT)}")
    if is_export(wish.name):
        async with _export(wish) as node:
            yield node
        return
    path = _path(wish)
    mode = await asyncio.to_thread(_mode, path)
    if mode is not None and not stat.S_ISREG(mode):
        async with _device(wish, path, mode) as node:
            yield node
        return
    if mode is not None:
        await _check_unused(wish, path)
    work = part_beside(path)
    try:
        node = await _make(wish, work)
        async with closing(node):
            yield node
            await flush(node, wish.name)
        await asyncio.to_thread(give_name, work, path, durable=wish.access.cache != "unsafe")
    except BaseException:
        with suppress(OSError):
            os.unlink(work)
        raise


async def flush(node: Node, name: str) -> None:
    """Make it durable.

    Raises:
        ToolError: it could not be. Differs from QEMU: it does not look.
    """
    try:
        await node.disk.flush()
    except QEDError as error:
        raise ToolError(f"Could not flush '{name}': {reason(error)}") from error


def _path(wish: NewImage) -> str:
    try:
        return os.path.realpath(local_name(wish.name))
    except ToolError as error:
        raise ToolError(str(error).removeprefix(f"{wish.name}: ")) from error


def _mode(path: str) -> int | None:
    """What kind of file is there and who may use it; None if there is none."""
    try:
        return os.stat(path).st_mode
    except OSError:
        return None


def _refusal(wish: NewImage, why: str) -> ToolError:
    return ToolError(f"{wish.name}: {wish.doing}: {why}")


async def _check_unused(wish: NewImage, path: str) -> None:
    """Whether the file may be replaced: we may write it, and nobody else does."""
    import qedasync

    roles = qedasync.LockRole
    role = roles.READ_WRITE if wish.format == "qed" else roles.RAW_READ_WRITE
    try:
        storage = await qedasync.open_storage(path, writable=True, lock=role)
    except ImageLocked as error:
        raise _refusal(
            wish, f'Failed to get "write" lock Is another process using the image [{wish.name}]?'
        ) from error
    except StorageError as error:
        raise _refusal(wish, f"Could not create '{wish.name}': {error.strerror}") from error
    await storage.close()


async def _make(wish: NewImage, work: str) -> Node:
    """The image under its first name; messages have the last one."""
    try:
        await create_image(work, wish.format, wish.values)
    except ToolError as error:
        why = str(error).removeprefix(f"{work}: ").replace(work, wish.name)
        raise _refusal(wish, why) from error
    backing = wish.values.get("backing_file")
    try:
        if not backing:
            return await open_node(work, wish.format, wish.access)
        return await _open_over(wish, work, str(backing))
    except ToolError as error:
        raise ToolError(str(error).replace(work, wish.name)) from error


async def _open_over(wish: NewImage, work: str, backing: str) -> Node:
    """Open the overlay over a file that the policy is not asked about."""
    import json  # late: few targets are overlays

    path = beside(local_name(wish.name), backing)
    below: dict[str, Any] = {"file": {"driver": "file", "filename": path}}
    if wish.values.get("backing_fmt") == "raw":  # the one format that is recorded
        below["driver"] = "raw"
    file = {"driver": "file", "filename": work}
    spec = {"driver": "qed", "file": file, "backing": below}
    name = f"json:{json.dumps(spec)}"
    try:
        return await open_node(name, None, wish.access)
    except ToolError as error:
        why = str(error).removeprefix(f"Could not open '{name}': ")
        why = why.removeprefix("Could not open backing file: ")
        raise ToolError(f"Could not open '{work}': Could not open backing file: {why}") from error


@asynccontextmanager
async def _device(wish: NewImage, path: str, mode: int) -> AsyncIterator[Node]:
    """What is no file is written where it is."""
    if stat.S_ISDIR(mode):
        raise _refusal(wish, f"Could not create '{wish.name}': {os.strerror(errno.EISDIR)}")
    if not stat.S_ISBLK(mode) or wish.format != "raw":
        raise _refusal(wish, "Cannot grow device files")
    async with closing(await open_node(path, "raw", wish.access)) as node:
        if node.disk.size < int(wish.values["size"]):
            raise _refusal(wish, "Cannot grow device files")
        yield node
        await flush(node, wish.name)


@asynccontextmanager
async def _export(wish: NewImage) -> AsyncIterator[Node]:
    """A disk over NBD is written where it is."""
    try:
        size = int(wish.values["size"])
        node = await open_export(wish.name, wish.format, size, wish.access)
    except ToolError as error:
        raise _refusal(wish, str(error)) from error
    async with closing(node):
        yield node
        await flush(node, wish.name)
