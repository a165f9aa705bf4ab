"""From a name on the command line to an open disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import qedasync
from qedasync.cli.nodes.layer import Holder
from qedasync.cli.nodes.policy import explain
from qedasync.cli.nodes.spec import parse_image_opts, parse_json, protocol_of
from qedasync.cli.nodes.stack import Stack
from qedasync.cli.nodes.values import Options, nested, text
from qedasync.cli.options import Parsed, ToolError

if TYPE_CHECKING:
    from qedasync.cli.nodes.debugger import Debugger

__all__ = ["Access", "Node", "access_from", "open_node", "resolve_file"]


class Access(NamedTuple):
    """How a verb wants to open an image.

    Attributes:
        writable: for writing too.
        cache: qemu-img's word.
        force_share: take no locks.
        backing: ``"deny"``, ``"same-dir"``, ``"allow:GLOB"`` or ``"any"``; None for what
            ``QEDASYNC_BACKING`` says, or the library's default.
        no_backing: leave the backing file closed.
        write_backing: open a backing file that the options give for writing, too.
        copy_on_read: what is read from a backing file is written to the image.
        check: repair an image that was not closed cleanly, before the first write.
        at_once: no event loop runs. The disk is a :class:`qedasync.BlockingImage` or
            :class:`qedasync.BlockingRaw`, or with ``no_backing`` mere :class:`qedasync.DiskFacts`.
    """

    writable: bool = False
    cache: str = "writeback"
    force_share: bool = False
    backing: str | None = None
    no_backing: bool = False
    write_backing: bool = False
    copy_on_read: bool = False
    check: bool = True
    at_once: bool = False


class Node(NamedTuple):
    """An open stack.

    Attributes:
        disk: what is read and written.
        format: ``"qed"``, ``"raw"``, or the protocol's name if that was asked for.
        filename: as QEMU reports it.
        spec: the options it was opened with, as objects in objects.
        allocated: bytes that the file takes on the host; None where nobody can tell.
        debug: rules and breakpoints of the blkdebug in the stack, if there is one.
        file: path of the file at the bottom, "" if it is none.
        cluster_size: of the image in it, None if there is none.
        holder: the image whose clusters count as allocated, None if there is none.
    """

    disk: Any
    format: str
    filename: str
    spec: Mapping[str, Any]
    allocated: int | None
    debug: Debugger | None
    file: str
    cluster_size: int | None = None
    holder: Holder | None = None

    async def close(self) -> None:
        """Release it all."""
        await self.disk.close()


def access_from(parsed: Parsed, **fields: Any) -> Access:
    """What the options that all verbs share say, and what the verb says itself."""
    fields.setdefault("force_share", parsed.has("force-share"))
    fields.setdefault("backing", parsed.last("backing"))
    return Access(**fields)


async def open_node(
    name: str, fmt: str | None, access: Access, *, image_opts: bool = False
) -> Node:
    """Open what a name means.

    Args:
        fmt: the format; looked for if None.
        image_opts: the name is options.

    Raises:
        ToolError: it cannot be opened; in QEMU's words.
        LoopNeeded: nor at once.

    Cancellation: nothing stays open.
    """
    options: Options = {}
    if image_opts:
        options = _given(name, access)
    if fmt is not None:
        options["driver"] = fmt
    spec = dict(options) if image_opts else {"file": name}
    try:
        layer, disk = await Stack(access).open(None if image_opts else name, options)
    except ToolError as error:
        raise ToolError(f"Could not open '{name}': {error}", error.code) from error
    except qedasync.QEDError as error:
        raise ToolError(f"Could not open '{name}': {explain(error, name)}") from error
    if name.startswith("json:") and not image_opts:
        spec = parse_json(name)
    return Node(
        disk,
        layer.driver,
        layer.filename,
        nested(spec),
        layer.allocated,
        layer.debug,
        layer.file,
        layer.cluster_size,
        Holder(disk) if layer.driver == "qed" else layer.holder,
    )


def _given(name: str, access: Access) -> Options:
    """The options that the name is."""
    options = parse_image_opts(name)
    if access.force_share and text(options.get("force-share", "on")) not in ("on", "yes", "true"):
        raise ToolError("--force-share/-U conflicts with image options")
    return options


def resolve_file(name: str) -> str:
    """The path of the file that a name would make.

    Raises:
        ToolError: it is no plain file's name.
    """
    driver = protocol_of(name)
    if driver == "blkdebug" or name.startswith("json:"):
        raise ToolError(f"Driver '{driver}' does not support image creation")
    return name.removeprefix(f"{driver}:")
