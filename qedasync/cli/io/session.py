"""The image that commands work on, and the requests that are in flight on it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, NamedTuple

import qedasync
from qedasync.cli.io.driver_options import split_options, with_name
from qedasync.cli.io.failure import Failed, failing
from qedasync.cli.nodes import Access, Node, open_node
from qedasync.cli.options import ToolError

__all__ = ["Opening", "Session"]

_PAST_CACHE = ("none", "directsync")


class Opening(NamedTuple):
    """What to open, and how.

    Attributes:
        name: of the file; None if the options say it.
        options: of the driver, as ``--image-opts`` has them; may be "".
        format: of the image; looked for if None.
        readonly: for reading only.
        cache: qemu-img's word.
        native: "aio=native" was asked for, which has a condition.
        snapshot: writes go to a temporary overlay.
        copy_on_read: what is read from the backing file is kept.
        force_share: take no locks.
        backing: the policy, as ``--backing`` has it.
    """

    name: str | None
    options: str = ""
    format: str | None = None
    readonly: bool = False
    cache: str = "writethrough"
    native: bool = False
    snapshot: bool = False
    copy_on_read: bool = False
    force_share: bool = False
    backing: str | None = None


class Session:
    """At most one open image, with its requests. Close it in the end.

    Attributes:
        backing: the policy for images that commands open.
        ended: whether the commands have come to their end.
    """

    def __init__(self, backing: str | None = None) -> None:
        self.backing = backing
        self.ended = False
        self._node: Node | None = None
        self._opening: Opening | None = None
        self._readonly = False
        self._requests: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether there is an image."""
        return self._node is not None

    @property
    def node(self) -> Node:
        """The image; there must be one."""
        assert self._node is not None
        return self._node

    @property
    def disk(self) -> Any:
        """What to read and write."""
        return self.node.disk

    @property
    def readonly(self) -> bool:
        """Whether it is not to be written."""
        return self._readonly

    def check_range(self, offset: int, length: int, what: str) -> None:
        """Raise Failed if the image has not all of these bytes; as the host's error it is EIO."""
        if offset + length > self.disk.size:
            raise Failed(f"{what}: Input/output error\n")

    # --------------------------------------------------------------- the image

    async def open(self, opening: Opening) -> None:
        """Open an image; there must be none.

        Raises:
            ToolError: it cannot be opened; in qemu-io's words.
        """
        try:
            self._node = await _open(opening)
        except ToolError as error:
            name = "" if opening.name is None else f" device {opening.name}"
            raise ToolError(f"can't open{name}: {error}") from error
        self._opening, self._readonly = opening, opening.readonly

    async def reopen(self, readonly: bool, cache: str | None) -> None:
        """Go on in another way; requests in flight are waited for.

        Breakpoints, and an overlay that is temporary, stay as they are.

        Raises:
            ToolError: it cannot be done, and everything is as it was.
        """
        assert self._opening is not None
        await self.drain()
        new = self._opening._replace(readonly=readonly, cache=cache or self._opening.cache)
        if self.node.debug is not None or new.snapshot:
            with failing("reopen failed"):
                await self.disk.flush()
            self._readonly = readonly
            return
        old, node = self._opening, self.node
        self._node = None
        try:
            await node.close()
            await self.open(new)
        except ToolError:
            await self.open(old)
            raise

    async def close(self) -> None:
        """Wait for the requests and close the image, if there is one.

        Differs from QEMU: requests that stand at a breakpoint go on; it waits for ever.

        Raises:
            ToolError: what was written could not be made durable.
        """
        if self._node is None:
            return
        node = self._node
        if node.debug is not None:
            node.debug.remove_all_breaks()
        await self.drain()
        self._node = None
        try:
            await node.close()
        except qedasync.QEDError as error:
            raise ToolError(f"Could not close '{node.filename}': {_reason(error)}") from error

    # -------------------------------------------------------------- requests

    async def start(self, request: Coroutine[Any, Any, None]) -> None:
        """Let a request run beside the commands that follow; it has begun on return."""
        task = asyncio.create_task(request)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        await asyncio.sleep(0)

    async def drain(self) -> None:
        """Wait until no request is in flight.

        Cancellation: the requests go on.
        """
        while self._requests:
            done, _ = await asyncio.wait(self._requests)
            self._requests -= done
            for task in done:
                task.result()

    async def settle(self) -> None:
        """Let requests that have ended say so, before the command that runs now does."""
        if self._requests:
            await asyncio.sleep(0)


def _reason(error: qedasync.QEDError | OSError) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)


# ------------------------------------------------------------------- opening


async def _open(opening: Opening) -> Node:
    if opening.copy_on_read and opening.readonly:
        raise ToolError("Can't use copy-on-read on read-only device")
    if opening.native and opening.cache not in _PAST_CACHE:
        raise ToolError(
            "aio=native was specified, but it requires cache.direct=on, which was not specified."
        )
    access = Access(
        writable=not opening.readonly and not opening.snapshot,
        cache=opening.cache,
        force_share=opening.force_share,
        backing=opening.backing,
        copy_on_read=opening.copy_on_read,
    )
    if opening.force_share and not opening.readonly:
        raise ToolError("force-share=on can only be used with read-only images")
    name, fmt, image_opts = _said(opening)
    try:
        node = await open_node(name, fmt, access, image_opts=image_opts)
    except ToolError as error:
        raise ToolError(str(error).removeprefix(f"Could not open '{name}': ")) from error
    return await _as_snapshot(node, opening) if opening.snapshot else node


async def _as_snapshot(node: Node, opening: Opening) -> Node:
    """The node under a temporary overlay."""
    from qedasync.cli.nodes.copy_on_read import CopyOnRead
    from qedasync.cli.nodes.overlay import under_overlay

    node = await under_overlay(node)
    return node._replace(disk=CopyOnRead(node.disk)) if opening.copy_on_read else node


def _said(opening: Opening) -> tuple[str, str | None, bool]:
    """Name, format, and whether the name is options."""
    if opening.name is None:
        if not opening.options:
            raise ToolError("Must specify either driver or file")
        return opening.options, None, True
    options = split_options(opening.options)
    if not options:
        return opening.name, opening.format, False
    if set(options) == {"driver"}:
        return opening.name, options["driver"], False
    return with_name(opening.options, opening.name), None, True
