"""What a group of allocating writes will do to the file, worked out before anything is written.

Synchronous and without I/O: entries are looked up again (some requests may be in place by now),
clusters are handed out in queue order, and the result is three lists: data, L2 entries, L1 entries.
Two requests for one cluster share it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from qedasync.engine.alloc_queue import AllocatingWrite
from qedasync.engine.allocator import Allocator
from qedasync.engine.buffers import cut
from qedasync.engine.tables import Tables
from qedasync.events import Event
from qedasync.format.geometry import ENTRY_BYTES, SLICE_BYTES, SLICE_ENTRIES, FileOffset
from qedasync.format.table import pack_entries, sector_span
from qedasync.storage.base import ZERO_CHUNK, Write, WriteBuffers

__all__ = ["Fill", "Plan"]

_INDEX_MASK = SLICE_ENTRIES - 1


class Fill(NamedTuple):
    """An untouched part of a new cluster, to be copied from the backing file.

    Attributes:
        pos: guest position to copy from.
        buffer: filled in before the group is written; as long as the part.
    """

    pos: int
    buffer: bytearray


class Plan:
    """One group's changes.

    Args:
        slices: every slice the group touches, as on disk.
        copy_below: guest bytes below which the backing file shows through: the smaller of its size
            and the image's. Beyond, an untouched part is zeroes. 0 without a backing file.
        zero_fills: whether new clusters read as zeroes without being written.

    Attributes:
        slices: as above; not changed here.
        data: writes of guest data and of untouched parts, in order.
        fills: the parts of ``data`` to read before it is written.
        updates: new L2 entries.
        new_tables: L1 index → offset of a new L2 table.
        n_clusters: clusters handed out.
    """

    def __init__(
        self,
        tables: Tables,
        allocator: Allocator,
        slices: Mapping[int, array[int]],
        *,
        copy_below: int,
        zero_fills: bool,
    ) -> None:
        self.data: list[Write] = []
        self.fills: list[Fill] = []
        self.updates: dict[int, dict[int, int]] = {}
        self.new_tables: dict[int, int] = {}
        self.n_clusters = 0
        self._tables = tables
        self._geometry = tables.geometry
        self._allocator = allocator
        self.slices = slices
        self._copy_below = copy_below
        self._zero_fills = zero_fills

    def place(self, group: Iterable[AllocatingWrite]) -> None:
        """Work everything out.

        Raises:
            CorruptTable: an entry to be used is invalid, or its table must not be changed.
        """
        for request in group:
            if request.only_free:
                self._place_free(request)
            elif request.buffers is None:
                self._mark_zero(request.pos, request.length)
            else:
                self._place_data(request.pos, request.length, request.buffers)
        self._place_tables()

    @property
    def has_new_data(self) -> bool:
        """Whether data goes to clusters that nothing points to yet."""
        return self.n_clusters > len(self.new_tables) * self._geometry.table_size

    def l2_writes(self, *, new: bool, old_content: bool = False) -> list[Write]:
        """The L2 entries as writes of 512-byte groups, one for each slice touched.

        Args:
            new: those of new tables, else those of tables that were there.
            old_content: what was there before, to put it back.
        """
        writes = []
        for number, changes in sorted(self.updates.items()):
            pos = number << self._geometry.slice_shift
            is_new = self._geometry.l1_index(pos) in self.new_tables
            if is_new is new:
                writes.append(self._l2_write(number, changes, is_new, old_content))
        if new and not self._zero_fills:
            writes = [*self._blank_tables(), *writes]
        return writes

    def l1_writes(self, *, old_content: bool = False) -> list[Write]:
        """The L1 entries of the new tables as writes of 512-byte groups."""
        writes = []
        for first, n in sorted({sector_span(index, 1) for index in self.new_tables}):
            entries = self._tables.l1[first : first + n]  # all of L1 may be 16 MiB
            if not old_content:
                for index in self.new_tables.keys() & range(first, first + n):
                    entries[index - first] = self.new_tables[index]
            offset = self._geometry.l1_table_offset + first * ENTRY_BYTES
            writes.append(self._table_write(entries, (0, n), offset, Event.L1_UPDATE))
        return writes

    # ---------------------------------------------------------------- entries

    def _entry(self, cluster: int) -> int:
        """The entry of a guest cluster as this plan leaves it."""
        number, index = cluster >> 9, cluster & _INDEX_MASK
        changed = self.updates.get(number)
        if changed is not None and index in changed:
            return changed[index]
        return self.slices[number][index]

    def _set_entry(self, cluster: int, entry: int) -> None:
        self.updates.setdefault(cluster >> 9, {})[cluster & _INDEX_MASK] = entry

    def _take(self, n_clusters: int) -> FileOffset:
        self.n_clusters += n_clusters
        return self._allocator.take(n_clusters)

    def _place_free(self, request: AllocatingWrite) -> None:
        """What of a request goes to clusters that are unallocated by now: a guest was faster."""
        end = request.pos + request.length
        for start, stop in self._free_runs(request.pos, end):
            if request.buffers is None:
                self._mark_zero(start, stop - start)
            else:
                part = cut(request.buffers, start - request.pos, stop - start)
                self._place_data(start, stop - start, part)

    def _free_runs(self, pos: int, end: int) -> Iterator[tuple[int, int]]:
        """The runs [start, stop) of unallocated clusters, as this plan leaves things."""
        run: int | None = None
        for start in range(pos, end, self._geometry.cluster_size):
            if self._entry(start >> self._geometry.cluster_bits) == 0:
                run = start if run is None else run
            elif run is not None:
                yield run, start
                run = None
        if run is not None:
            yield run, end

    # ------------------------------------------------------------------ zeroes

    def _mark_zero(self, pos: int, length: int) -> None:
        geometry = self._geometry
        self._tables.check_own_table(pos)
        end = pos + length
        while pos < end:
            inside = pos & geometry.cluster_mask
            stop = min(pos - inside + geometry.cluster_size, end)
            cluster = pos >> geometry.cluster_bits
            entry = self._entry(cluster)
            if entry == 0:
                self._set_entry(cluster, 1)
            elif entry > 1:  # written since this request was queued
                self._check_entry(entry, pos)
                self.data += _zeroes(entry + inside, stop - pos, Event.PWRITEV_ZERO)
            pos = stop

    # ------------------------------------------------------------------- data

    def _place_data(self, first: int, length: int, buffers: WriteBuffers) -> None:
        """Clusters for what has none, and the bytes for ``first`` and on as few writes.

        Only the first and the last cluster can have untouched parts.
        """
        geometry = self._geometry
        pos, end = first, first + length
        if not self._copy_below and self._zero_fills:
            inside = pos & geometry.cluster_mask
            if inside + length <= geometry.cluster_size:  # one cluster, nothing to fill
                offset = self._cluster_for(pos)[0] + inside
                self.data.append(Write(offset, buffers, length, Event.WRITE_AIO))
                return
        run_pos = pos
        run_offset = -1
        old: int | None = None
        while pos < end:
            inside = pos & geometry.cluster_mask
            cluster, old = self._cluster_for(pos)
            offset = cluster + inside
            if pos == first and old is not None:
                self._fill(old, pos - inside, pos, cluster)
            if offset != run_offset + pos - run_pos:
                self._add_data(buffers, run_pos - first, run_offset, pos - run_pos)
                run_pos, run_offset = pos, offset
            pos = min(pos - inside + geometry.cluster_size, end)
        self._add_data(buffers, run_pos - first, run_offset, end - run_pos)
        if old is not None:
            self._fill(old, end, geometry.round_up(end), run_offset + end - run_pos)

    def _cluster_for(self, pos: int) -> tuple[int, int | None]:
        """The cluster of ``pos``, and the old entry if it is a new one (else None)."""
        cluster = pos >> self._geometry.cluster_bits
        number, index = cluster >> 9, cluster & _INDEX_MASK
        changed = self.updates.get(number)
        if changed is None or (entry := changed.get(index, 0)) == 0:
            entry = self.slices[number][index]
        if entry > 1:
            self._check_entry(entry, pos)
            return entry, None
        if changed is None:
            self._tables.check_own_table(pos)  # once for a slice
            changed = self.updates[number] = {}
        offset = changed[index] = self._take(1)
        return offset, entry

    def _check_entry(self, entry: int, pos: int) -> None:
        if not self._geometry.check_cluster_offset(entry, self._allocator.end_of_file):
            self._tables.lookup(pos, 1)  # says what is wrong with it

    def _add_data(self, buffers: WriteBuffers, start: int, offset: int, length: int) -> None:
        if length:
            part = cut(buffers, start, length)
            self.data.append(Write(offset, part, length, Event.WRITE_AIO))

    def _fill(self, old: int, start: int, stop: int, offset: int) -> None:
        """The untouched part ``[start, stop)`` of a new cluster, at ``offset`` in the file.

        Differs from QEMU: zeroes for a cluster that was ZERO, and past the image's end; QEMU copies
        the backing file's bytes there (dossier §7.4).
        """
        copied = max(min(stop, self._copy_below), start) if old == 0 else start
        if copied > start:
            fill = Fill(start, bytearray(copied - start))
            self.fills.append(fill)
            self.data.append(Write(offset, [fill.buffer], copied - start, Event.COW_WRITE))
        if stop > copied and not self._zero_fills:
            self.data += _zeroes(offset + copied - start, stop - copied, Event.COW_WRITE)

    # ----------------------------------------------------------------- tables

    def _place_tables(self) -> None:
        """New L2 tables, after the data as QEMU lays them."""
        geometry = self._geometry
        for number in sorted(self.updates):
            pos = number << geometry.slice_shift
            index = geometry.l1_index(pos)
            if index not in self.new_tables and self._tables.table_offset(pos) == 0:
                self.new_tables[index] = self._take(geometry.table_size)

    def _l2_write(
        self, number: int, changes: Mapping[int, int], is_new: bool, old_content: bool
    ) -> Write:
        geometry = self._geometry
        pos = number << geometry.slice_shift
        entries = self.slices[number]
        if not old_content:
            entries = array("Q", entries)
            for index, entry in changes.items():
                entries[index] = entry
        table = (
            self.new_tables[geometry.l1_index(pos)] if is_new else self._tables.table_offset(pos)
        )
        first = min(changes)
        span = sector_span(first, max(changes) + 1 - first)
        event = Event.L2_ALLOC_WRITE if is_new else Event.L2_UPDATE
        return self._table_write(entries, span, geometry.slice_file_offset(table, pos), event)

    def _blank_tables(self) -> list[Write]:
        size = self._geometry.table_bytes
        return [
            write
            for offset in self.new_tables.values()
            for write in _zeroes(offset, size, Event.L2_ALLOC_WRITE)
        ]

    @staticmethod
    def _table_write(
        entries: array[int], span: tuple[int, int], offset: int, event: Event
    ) -> Write:
        first, n = span
        data = pack_entries(entries, first, n)
        return Write(offset + first * ENTRY_BYTES, [data], len(data), event)


def _zeroes(offset: int, length: int, event: Event) -> Iterator[Write]:
    """Writes of zeroes that share their memory."""
    zeroes = memoryview(ZERO_CHUNK)
    for start in range(0, length, len(zeroes)):
        step = min(length - start, len(zeroes))
        yield Write(offset + start, [zeroes[:step]], step, event)


assert SLICE_BYTES == SLICE_ENTRIES * ENTRY_BYTES == 1 << 12  # the 9 in Plan._entry
