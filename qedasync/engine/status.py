"""Block status: what the mapping says, through the whole chain of backing files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from qedasync.engine.extents import Extent, ExtentKind, merge
from qedasync.engine.source import Source
from qedasync.engine.tables import Tables
from qedasync.format.cluster import ClusterKind, Lookup

__all__ = ["Mapper"]


class Mapper:
    """Describes one image.

    Args:
        path: the image file's name, for :attr:`Extent.path`.

    Attributes:
        backing: what unallocated areas come from, or None.
    """

    def __init__(self, tables: Tables, path: str) -> None:
        self.backing: Source | None = None
        self._tables = tables
        self._path = path

    async def block_status(self, pos: int, length: int) -> list[Extent]:
        """The runs of ``[pos, pos + length)``, in order and without gaps; neighbours differ.

        Raises:
            CorruptTable, StorageError, BackingError: an entry is invalid or cannot be read.
        """
        return list(merge([run async for run in self.runs(pos, length)]))

    async def runs(self, pos: int, length: int) -> AsyncIterator[Extent]:
        """The same, as they are looked up; not merged."""
        end = pos + length
        while pos < end:
            found = await self._tables.find_cluster(pos, end - pos)
            if found.kind is ClusterKind.L1:
                found = found._replace(length=self._skip_empty_l1(pos, end) - pos)
            if found.kind in (ClusterKind.FOUND, ClusterKind.ZERO) or self.backing is None:
                yield self._own(found, pos)
            else:
                for extent in await self._from_backing(self.backing, pos, found.length):
                    yield extent
            pos += found.length

    def _skip_empty_l1(self, pos: int, end: int) -> int:
        """Where the next L2 table begins to matter; an empty image is then one step."""
        shift, l1 = self._tables.geometry.l1_shift, self._tables.l1
        index = pos >> shift
        while index < len(l1) and l1[index] == 0:
            index += 1
        return min(index << shift, end) if index < len(l1) else end

    def _own(self, found: Lookup, pos: int) -> Extent:
        if found.kind is ClusterKind.FOUND:
            return Extent(
                pos, found.length, ExtentKind.DATA, False, offset=found.offset, path=self._path
            )
        kind = ExtentKind.ZERO if found.kind is ClusterKind.ZERO else ExtentKind.UNALLOCATED
        return Extent(pos, found.length, kind, True)

    async def _from_backing(self, backing: Source, pos: int, length: int) -> list[Extent]:
        """One layer down; past the backing file's end there is nothing."""
        inside = max(0, min(backing.size - pos, length))
        below = await backing.block_status(pos, inside) if inside else []
        extents = [
            extent
            if extent.kind is ExtentKind.UNALLOCATED
            else replace(extent, kind=ExtentKind.BACKING, depth=extent.depth + 1)
            for extent in below
        ]
        if inside < length:
            extents.append(Extent(pos + inside, length - inside, ExtentKind.UNALLOCATED, True))
        return extents
