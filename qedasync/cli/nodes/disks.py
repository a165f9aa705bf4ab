"""An open node as a disk, and what the blkdebug below it has to do with that."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import qedasync
from qedasync.cli.nodes.formats import recorded_backing
from qedasync.cli.nodes.layer import How, Layer
from qedasync.cli.sizes import whole_sectors

if TYPE_CHECKING:
    from qedasync.cli.nodes.blkdebug import BlkdebugStorage

__all__ = ["as_disk", "copy_on_read", "has_backing", "has_whole_blocks", "unwatched", "watcher_of"]


async def as_disk(layer: Layer, how: How) -> Any:
    """The node as a disk; closes it if that cannot be."""
    disk = layer.disk
    if disk is None:
        try:
            disk = await qedasync.open_raw(
                layer.file or layer.filename,
                how.mode,
                cache=layer.cache(how),
                storage=layer.storage,
            )
        except BaseException:
            await layer.storage.close()
            raise
    if layer.watcher is not None:
        from qedasync.cli.nodes.debugged import Debugged

        disk = Debugged(disk, layer.watcher, through=how.write_through, flushes=how.flushes)
    if layer.shift:
        from qedasync.cli.nodes.disk_filter import Shifted

        disk = Shifted(disk, layer.shift)
    if how.detect_zeroes and how.writable:
        from qedasync.cli.nodes.zero_detector import ZeroDetector

        disk = ZeroDetector(disk)
    return disk


def copy_on_read(layer: Layer) -> None:
    """Keep what is read from a backing file in the image, also if a raw node lies on it."""
    from qedasync.cli.nodes.copy_on_read import CopyOnRead

    if layer.driver == "qed":
        layer.disk = CopyOnRead(layer.disk)
    elif isinstance(layer.storage, qedasync.DiskStorage) and hasattr(
        layer.storage.disk, "populate"
    ):
        layer.storage.disk = CopyOnRead(layer.storage.disk)


def watcher_of(layer: Layer) -> BlkdebugStorage | None:
    """The node itself, if it is a blkdebug."""
    if layer.driver != "blkdebug":
        return None
    from qedasync.cli.nodes.blkdebug import BlkdebugStorage

    assert isinstance(layer.storage, BlkdebugStorage)
    return layer.storage


def has_whole_blocks(layer: Layer) -> bool:
    """Whether a disk that only ends where its file does ends with a block of blkdebug's."""
    debug = layer.watcher if layer.driver == "raw" else watcher_of(layer)
    return debug is None or whole_sectors(debug.size) % debug.align == 0


def unwatched(layer: Layer) -> qedasync.Storage:
    """Its bytes for a look that no rule is to hear of."""
    return layer.storage if layer.watcher is None else layer.watcher.inner


async def has_backing(layer: Layer) -> bool:
    """Whether an image names a backing file; what is wrong with it, the opening tells."""
    with suppress(qedasync.QEDError):
        name, _ = await recorded_backing(unwatched(layer))
        return name is not None
    return False
