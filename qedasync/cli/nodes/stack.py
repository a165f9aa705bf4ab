"""Opens the nodes of a stack, from the bottom up.

A node's options are taken one by one by those who know them; what nobody has taken in the end is
refused. A node that no driver is named for is a protocol's where it is another's file, and else an
image whose format is looked for.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import qedasync
from qedasync.cli.common import beside
from qedasync.cli.nodes.disks import (
    as_disk,
    copy_on_read,
    has_backing,
    has_whole_blocks,
    unwatched,
    watcher_of,
)
from qedasync.cli.nodes.formats import open_foreign, open_raw_node, probe, recorded_backing
from qedasync.cli.nodes.generic import backing_keys, take_generic, takes_backing_away
from qedasync.cli.nodes.host import open_host
from qedasync.cli.nodes.layer import (
    CACHES,
    FOREIGN,
    FORMATS,
    PROTOCOLS,
    Holder,
    How,
    Layer,
    LoopNeeded,
)
from qedasync.cli.nodes.policy import admit, explain, gate, policy
from qedasync.cli.nodes.spec import parse_json, protocol_of, take_name
from qedasync.cli.nodes.values import Options, extract, refuse_rest, text
from qedasync.cli.options import ToolError

if TYPE_CHECKING:
    from qedasync.cli.nodes.opening import Access

__all__ = ["Stack"]

_MAX_DEPTH = 64


class Stack:
    """Opens one stack.

    Args:
        access: how the verb wants it.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._names: set[str] = set()
        self._depth = 0

    async def open(self, name: str | None, options: Options) -> tuple[Layer, Any]:
        """Open a name, or what the options say.

        Returns: the topmost node, and it as a disk, which is what is to be closed.

        Raises:
            ToolError, QEDError: it cannot be opened; nothing stays open.
            LoopNeeded: nor at once.
        """
        access = self._access
        direct, through, flushes = CACHES[access.cache]
        how = How(access.writable, direct, through, flushes, access.force_share)
        layer, own = await self._open(name, options, how, protocol=False)
        if access.at_once:
            return layer, layer.disk or self._raw_at_once(layer)
        if access.copy_on_read and access.writable:
            copy_on_read(layer)
        if own.writable and not has_whole_blocks(layer):
            await layer.storage.close()
            raise ToolError(
                "Cannot get 'write' permission without 'resize': Image size is not a multiple of"
                " request alignment"
            )
        return layer, await as_disk(layer, own)

    async def _open(
        self, name: str | None, options: Options, how: How, *, protocol: bool
    ) -> tuple[Layer, How]:
        """Open a node; answers how, too, after its own options.

        Args:
            options: its own, all taken in the end.
            protocol: it is another node's file.
        """
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ToolError("the stack of nodes is too deep")
        if name is not None and name.startswith("json:"):
            given = {**parse_json(name), **options}
            options.update(given)
            name = None
        driver = options.pop("driver", None)
        if not isinstance(driver, str):
            driver = None
        elif driver not in FORMATS + FOREIGN + PROTOCOLS:
            raise ToolError(f"Unknown driver '{driver}'")
        if driver in PROTOCOLS or (protocol and driver is None):
            return await self._open_protocol(driver, name, options, how)
        return await self._open_format(driver, name, options, how)

    # -------------------------------------------------------------- protocols

    async def _open_protocol(
        self, driver: str | None, name: str | None, options: Options, how: How
    ) -> tuple[Layer, How]:
        if driver is None:
            plain = options.get("filename")
            if name is None and not isinstance(plain, str):
                raise ToolError("Must specify either driver or file")
            driver = protocol_of(name or str(plain), prefixes=name is not None)
        if name is not None:
            take_name(driver, name, options)
        how = take_generic(options, how, self._names)
        if self._access.at_once and driver in ("blkdebug", "nbd"):
            raise LoopNeeded
        if driver == "blkdebug":
            return await self._open_blkdebug(options, how), how
        if driver == "nbd":
            from qedasync.cli.nodes.remote import open_nbd

            return await open_nbd(options, how), how
        access = self._access
        layer = await open_host(
            driver, options, how, info_only=access.no_backing, at_once=access.at_once
        )
        return layer, how

    async def _open_blkdebug(self, options: Options, how: How) -> Layer:
        from qedasync.cli.nodes.blkdebug import BlkdebugStorage
        from qedasync.cli.nodes.rules import STRONG, take_rules

        given = {k: v for k, v in options.items() if k in STRONG or k.startswith(STRONG)}
        plain = text(options.pop("x-image", None))
        rules = take_rules(options, writable=how.writable)
        below = await self._child("image", plain, options, how)
        try:
            rules.check_limits()
            refuse_rest("blkdebug", options, protocol=True)
        except BaseException:
            await below.storage.close()
            raise
        storage = BlkdebugStorage(below.storage, rules)
        named = below.exact and set(given) <= {"config"}
        exact = f"blkdebug:{given.get('config', '')}:{below.exact}" if named else ""
        opened = {**given, "driver": "blkdebug", "image": below.options}
        return Layer(
            "blkdebug",
            storage,
            opened,
            exact,
            None,
            debug=storage.debugger,
            file=below.file,
            cluster_size=below.cluster_size,
            holder=below.holder,
        )

    async def _child(self, key: str, name: str | None, options: Options, how: How) -> Layer:
        """Open the node below, which the options have as ``key``.

        Raises:
            ToolError: there is none, or there are two.
        """
        layer = await self._find_child(key, name, options, how)
        if layer is None:
            raise ToolError(f'A block device must be specified for "{key}"')
        return layer

    async def _find_child(
        self, key: str, name: str | None, options: Options, how: How
    ) -> Layer | None:
        own = extract(options, f"{key}.")
        reference = options.pop(key, None)
        if isinstance(reference, str):
            if own or name is not None:
                raise ToolError(
                    "Cannot reference an existing block device with additional options or a new"
                    " filename"
                )
            raise ToolError(f"Cannot find device='{reference}' nor node-name='{reference}'")
        if name is None and not own:
            return None
        layer, own_how = await self._open(name, own, how, protocol=True)
        if layer.disk is not None:
            if self._access.at_once:
                await layer.disk.close()
                raise LoopNeeded
            disk = await as_disk(layer, own_how)
            layer.storage = qedasync.DiskStorage(disk)
            layer.holder = Holder(disk) if layer.driver == "qed" else None
        return layer

    # ---------------------------------------------------------------- formats

    async def _open_format(
        self, driver: str | None, name: str | None, options: Options, how: How
    ) -> tuple[Layer, How]:
        absent = takes_backing_away(options)
        file_how = self._peek(options, how)
        async with AsyncExitStack() as opened:
            below = await self._find_child("file", name, options, file_how)
            if below is None:
                if driver is None:
                    raise ToolError("Must specify either driver or file")
                take_generic(options, how, self._names)
                raise ToolError('A block device must be specified for "file"')
            opened.push_async_callback(below.storage.close)
            below.watcher = watcher_of(below)
            driver = driver or await probe(below.storage)
            how = take_generic(options, how, self._names)
            if driver == "raw":
                if not self._access.no_backing and backing_keys(options):
                    raise ToolError("Driver doesn't support backing files")
                layer = open_raw_node(below, options)
                if self._access.at_once and layer.shift and not self._access.no_backing:
                    raise LoopNeeded  # what maps a part of a file stands on one
            elif driver in FOREIGN:
                if self._access.at_once:
                    raise LoopNeeded
                refuse_rest(driver, options, protocol=False)
                alone = absent or self._access.no_backing
                allowed = False if alone else gate(self._access.backing)
                layer = await open_foreign(driver, below, how, allowed)
            else:
                layer = await self._qed(below, options, how, absent=absent)
            opened.pop_all()
        return layer, how

    def _peek(self, options: Options, how: How) -> How:
        """How the file is opened, by the options of the image on it; they are taken later."""
        try:
            return take_generic(dict(options), how, set())
        except ToolError:
            return how  # told when they are taken: what is wrong with the file comes first

    async def _qed(self, below: Layer, options: Options, how: How, *, absent: bool) -> Layer:
        """An image over its file, which it then owns."""
        own = {} if self._access.no_backing else extract(options, "backing.")
        reference = None
        if not self._access.no_backing and isinstance(options.get("backing"), str):
            reference = options.pop("backing")
        if options and await probe(below.storage) != "qed":
            raise ToolError("Image not in QED format")  # this comes first
        refuse_rest("qed", options, protocol=False)
        path = below.file or below.filename
        backing: Any = policy(self._access.backing)
        opened: Options = {"driver": "qed", "file": below.options}
        absent = absent and not self._access.no_backing
        overridden = bool(own) or absent
        if below.watcher is not None:
            below.watcher.under_image = True
        if absent or self._access.no_backing:
            backing = False
        elif overridden or isinstance(reference, str):
            if self._access.at_once:
                raise LoopNeeded  # what shows through is read by more than one
            node, backing = await self._backing(below, own, reference, how)
            opened["backing"] = node.options
        elif below.watcher is not None and await has_backing(below):
            _, backing = await self._backing(below, own, None, how)
        if absent:
            opened["backing"] = None
        try:
            disk = await self._open_image(path, below, how, backing)
        except qedasync.BackingError as error:
            raise ToolError(explain(error, path)) from error
        except qedasync.StorageError as error:
            raise ToolError(_unreadable(error)) from error
        exact = "" if overridden else below.exact_protocol
        return replace(
            below,
            driver="qed",
            disk=disk,
            options=opened,
            exact=exact,
            cluster_size=disk.cluster_size,
            holder=None,
        )

    async def _open_image(self, path: str, below: Layer, how: How, backing: Any) -> Any:
        if self._access.at_once:
            return await self._image_at_once(path, below, how)
        return await qedasync.open(
            path,
            how.mode,
            cache=below.cache(how),
            storage=below.storage,
            lock=not how.force_share,
            check="auto" if self._access.check else "never",
            backing=backing,
        )

    async def _image_at_once(self, path: str, below: Layer, how: How) -> Any:
        if self._access.no_backing and not how.writable:
            return await qedasync.DiskFacts.of_image(below.storage, path)
        if how.writable and how.cache != "writeback":
            raise LoopNeeded
        image = await qedasync.BlockingImage.open(
            below.storage, path, writable=how.writable, backing=not self._access.no_backing
        )
        if image is None:
            raise LoopNeeded
        return image

    def _raw_at_once(self, layer: Layer) -> Any:
        if self._access.no_backing:
            return qedasync.DiskFacts.of_raw(layer.storage, layer.file)
        return qedasync.BlockingRaw(layer.storage, layer.file)

    async def _backing(
        self, below: Layer, own: Options, reference: Any, how: How
    ) -> tuple[Layer, Any]:
        """The backing file that the options give, or the one of the image, changed by them."""
        try:
            if isinstance(reference, str):
                raise ToolError(f"Cannot find device='{reference}' nor node-name='{reference}'")
            name = None
            if "file.filename" not in own:
                name, fmt = await recorded_backing(unwatched(below))
                if name is not None:
                    path = beside(below.file, name)
                    admit(name, path, below.file, self._access.backing)
                    name = path
                if fmt is not None:
                    own.setdefault("driver", fmt)
            node, node_how = await self._open(
                name, own, how.below(writable=self._access.write_backing), protocol=False
            )
            disk = await as_disk(node, node_how)
            if below.watcher is not None:
                from qedasync.cli.nodes.debugged import DebuggedBacking

                disk = DebuggedBacking(disk, below.watcher.debugger)
            return node, disk
        except ToolError as error:
            raise ToolError(f"Could not open backing file: {error}") from error
        except qedasync.BackingRefused:
            raise
        except qedasync.QEDError as error:
            why = explain(error, below.file)
            raise ToolError(f"Could not open backing file: {why}") from error


def _unreadable(error: qedasync.StorageError) -> str:
    """What QEMU says of an image that cannot be read, by the place."""
    if error.offset is None:
        return str(error.strerror)
    return f"Failed to read {'L1 table' if error.offset else 'QED header'}"
