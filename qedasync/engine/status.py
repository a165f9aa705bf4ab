"""Block status: what the mapping says, through the whole chain of backing files.

An image may be of many EiB and say nothing about most of them. So empty parts of L1, and of L2
tables that are holes in the file, are passed over in one step; a backing file is asked for a few
runs at a time, not for all that may lie below one unallocated run; and the loop gets turns.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from qedasync.engine.extents import Extent, ExtentKind, joined, merge, slice_extents
from qedasync.engine.source import Source
from qedasync.engine.tables import LOOKUPS_PER_TURN, Tables
from qedasync.format.cluster import ClusterKind, Lookup, add_runs, slice_runs
from qedasync.format.geometry import SLICE_ENTRIES
from qedasync.turns import give_turn

__all__ = ["Mapper", "joined_batches"]

_SLICES_AT_ONCE = 32


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
        found: list[Extent] = []
        steps = 0
        async for runs in self.batches(pos, length):
            if found and runs[0].continues(found[-1]):
                found[-1] = joined(found[-1], runs[0])
                del runs[0]
            found += runs
            steps += 1 + len(runs)
            if steps >= LOOKUPS_PER_TURN:
                steps = 0
                await give_turn()
        return found

    async def first_runs(self, pos: int, length: int) -> list[Extent]:
        """The first of :meth:`runs`.

        Not merged, so that each costs one look-up a layer, however long the chain is.
        """
        found = []
        async with aclosing(self.runs(pos, length)) as runs:
            async for run in runs:
                found.append(run)
                if len(found) == LOOKUPS_PER_TURN:
                    break
        return found

    async def runs(self, pos: int, length: int) -> AsyncGenerator[Extent, None]:
        """The same, as they are looked up; not merged."""
        async with aclosing(self.batches(pos, length)) as batches:
            async for batch in batches:
                for run in batch:
                    yield run

    async def batches(self, pos: int, length: int) -> AsyncGenerator[list[Extent], None]:
        """The same, as many as one look-up finds: at least one, and neighbours differ."""
        geometry = self._tables.geometry
        shift, slice_mask = geometry.l1_shift, (1 << geometry.slice_shift) - 1
        end = pos + length
        full_table = -1  # an L1 index; no use asking for holes there again
        no_run_before = pos
        while pos < end:
            batch: list[Extent] = []
            if pos >= no_run_before:
                stop = min(end, pos + (_SLICES_AT_ONCE << geometry.slice_shift))
                batch = self._run_ahead(pos, stop)
                no_run_before = pos if batch else stop
            batch = batch or self._mapped_at_hand(pos, end)
            if batch:
                pos = batch[-1].end
                yield batch
                continue
            found = await self._tables.find_cluster(pos, end - pos)
            if found.kind is ClusterKind.L1:
                found = found._replace(length=self._skip_empty_l1(pos, end) - pos)
            elif found.kind is ClusterKind.L2 and pos >> shift != full_table:
                stop = pos + found.length
                if stop < end and not stop & slice_mask:
                    hole_end = await self._tables.end_of_empty(stop)
                    found = found._replace(length=min(hole_end, end) - pos)
                    full_table = pos >> shift if hole_end == stop else -1
                if not pos & ((1 << shift) - 1) and found.length == 1 << shift < end - pos:
                    index = await self._tables.end_of_empty_tables((pos >> shift) + 1)
                    found = found._replace(length=min(index << shift, end) - pos)
            if found.kind in (ClusterKind.FOUND, ClusterKind.ZERO) or self.backing is None:
                batch = [self._own(found, pos)]
            else:
                batch = await self._from_backing(self.backing, pos, found.length)
            pos = batch[-1].end
            yield batch

    def _run_ahead(self, pos: int, end: int) -> list[Extent]:
        """The run that fills the next slices, if they are not at hand."""
        found = self._tables.run_ahead(pos, end)
        if found is None:
            return []
        offset, length = found
        return [Extent(pos, length, ExtentKind.DATA, False, offset=offset, path=self._path)]

    def _mapped_at_hand(self, pos: int, end: int) -> list[Extent]:
        """What slices at hand have from ``pos`` on: a look-up for each run would cost more.

        Ends before what is unallocated, where more than the slice has a say.
        """
        geometry = self._tables.geometry
        size, start, runs = geometry.cluster_size, pos, list[tuple[int, int]]()
        for _ in range(_SLICES_AT_ONCE):
            entries = self._tables.sound_slice(pos) if pos < end else None
            if entries is None or len(runs) >= LOOKUPS_PER_TURN:
                break
            first = (pos >> geometry.cluster_bits) & (SLICE_ENTRIES - 1)
            last = first + geometry.bytes_to_clusters((pos & geometry.cluster_mask) + end - pos)
            end_index = min(last, SLICE_ENTRIES)
            more = slice_runs(entries, first, end_index, size, self._tables.pattern)
            free = next((i for i, (entry, _) in enumerate(more) if entry == 0), None)
            add_runs(runs, more[:free], size)
            if free is not None:
                break
            pos = geometry.end_of_slice(pos)
        return slice_extents(runs, start, end, size, self._path) if runs else []

    def _skip_empty_l1(self, pos: int, end: int) -> int:
        """Where the next L2 table begins to matter; an empty image is then one step."""
        shift, l1 = self._tables.geometry.l1_shift, self._tables.l1
        index = pos >> shift
        while index < len(l1) and not any(l1[index : index + SLICE_ENTRIES]):
            index += SLICE_ENTRIES
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
        """One layer down, perhaps only the beginning; past the backing file's end is nothing."""
        inside = max(0, min(backing.size - pos, length))
        below = await backing.block_status(pos, inside) if inside else []
        extents = [
            replace(
                extent,
                kind=extent.kind if extent.kind is ExtentKind.UNALLOCATED else ExtentKind.BACKING,
                depth=extent.depth + 1,
            )
            for extent in below
        ]
        end = below[-1].end if below else pos
        if end == pos + inside < pos + length:
            extents.append(Extent(pos + inside, length - inside, ExtentKind.UNALLOCATED, True))
        return list(merge(extents))


async def joined_batches(
    batches: AsyncGenerator[list[Extent], None],
) -> AsyncGenerator[Extent, None]:
    """The runs of all batches, joined where one goes on with the next; gives the loop turns."""
    last: Extent | None = None
    steps = 0
    async with aclosing(batches):
        async for batch in batches:
            steps += 1 + len(batch)
            if steps >= LOOKUPS_PER_TURN:
                steps = 0
                await give_turn()
            for run in batch:
                if last is None:
                    last = run
                elif run is batch[0] and run.continues(last):
                    last = joined(last, run)
                else:
                    yield last
                    last = run
    if last is not None:
        yield last
