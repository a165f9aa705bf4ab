"""Growing an image: what lies past its old end must read as zeroes before it counts.

The order is what makes a crash harmless: zeroes first, flushed, and only then the new size in the
header. Until then the image reads as it did.

Differs from QEMU: grows under a longer backing file (QEMU refuses), and zeroes stale bytes that an
earlier writer may have left behind the old end (dossier §9, §7.4).
"""

from __future__ import annotations

import errno
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from qedasync.engine.header_file import HeaderFile
from qedasync.engine.metadata import load_l1
from qedasync.engine.source import Source
from qedasync.engine.tables import LOOKUPS_PER_TURN, Tables
from qedasync.errors import RequestError
from qedasync.events import Event
from qedasync.format.cluster import ClusterKind
from qedasync.format.geometry import Geometry
from qedasync.format.header import MAX_IMAGE_SIZE, SECTOR_BYTES
from qedasync.storage.base import Storage, zero_views
from qedasync.turns import give_turn

if TYPE_CHECKING:
    from qedasync.engine.alloc_queue import AllocQueue

__all__ = ["Grower", "check_new_size"]


class Grower:
    """Grows one image.

    Args:
        queue: has the turn to change metadata; None if nobody else does, and there is no backing
            file.

    Attributes:
        backing: what would show through past the old end, or None.
    """

    def __init__(
        self, storage: Storage, tables: Tables, queue: AllocQueue | None, header_file: HeaderFile
    ) -> None:
        self.backing: Source | None = None
        self._storage = storage
        self._tables = tables
        self._queue = queue
        self._turn: AbstractAsyncContextManager[None] = queue.turn if queue else nullcontext()
        self._header_file = header_file

    async def prepare(self, new_size: int) -> None:
        """Make ``[old size, new_size)`` read as zeroes; a flush must follow, then ``finish``."""
        old_size = self._header_file.header.image_size
        async with self._turn:
            l1 = await load_l1(self._storage, self._tables.geometry, new_size)
            self._tables.extend(l1)
        pos, steps = old_size, 0
        while pos < new_size:
            pos += await self._clean_run(pos, new_size - pos)
            steps += 1
            if steps % LOOKUPS_PER_TURN == 0:
                await give_turn()

    async def finish(self, new_size: int) -> None:
        """Write the new size into the header."""
        async with self._turn:
            header = replace(self._header_file.header, image_size=new_size)
            await self._header_file.update(header)

    async def _clean_run(self, pos: int, length: int) -> int:
        """Zero the run at ``pos`` as far as it needs it; answers how far it went."""
        geometry = self._tables.geometry
        inside = geometry.offset_into_cluster(pos)
        if inside:  # the rest of the old last cluster, all of it
            length = geometry.cluster_size - inside
        found = await self._tables.find_cluster(pos, length)
        step = found.length
        if found.kind is ClusterKind.FOUND:
            step = geometry.round_up(pos + step) - pos
            await self._storage.write_zeroes(found.offset, step, Event.PWRITEV_ZERO)
        elif found.kind is not ClusterKind.ZERO and self.backing is not None:
            step = await self._hide_backing(self.backing, pos, step)
        return step

    async def _hide_backing(self, backing: Source, pos: int, length: int) -> int:
        """Keep the backing file from showing through an unallocated run."""
        assert self._queue is not None
        if pos >= backing.size:
            return length
        geometry = self._tables.geometry
        span = 1 << geometry.slice_shift
        length = min(length, span - (pos & (span - 1)), geometry.round_up(backing.size) - pos)
        if not geometry.offset_into_cluster(pos):
            await self._queue.write(pos, length, None)
            return length
        await self._queue.write(pos, length, [*zero_views(length)])
        return length


def check_new_size(geometry: Geometry, old: int, new: int) -> None:
    """Raise RequestError unless an image of ``old`` guest bytes can have ``new``."""
    limit = min(geometry.max_image_size, MAX_IMAGE_SIZE)
    problem = None
    if new < old:
        problem = "an image cannot be made smaller"
    elif new % SECTOR_BYTES:
        problem = f"it must be a multiple of {SECTOR_BYTES}"
    elif new > limit:
        problem = f"the image's tables map at most {limit} bytes"
    if problem is not None:
        raise RequestError(
            f"Cannot set the size to {new} bytes (now {old}): {problem}",
            size=old,
            length=new,
            errno=errno.ENOTSUP if new < old else errno.EINVAL,
        )
