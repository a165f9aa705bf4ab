"""Mends an image: clears invalid entries, cuts leaked clusters off, separates what is shared.

The order keeps every moment no worse than the one before, whenever the power fails:

1. clear invalid entries, flush. First, because an entry that points past the end of the file would
   become valid, and wrong, once the file grows.
2. cut leaked clusters off the end of the file, flush; clusters handed out below come after that.
3. copy what is named twice into new clusters, flush; then point the later entry there.
4. look again; only if nothing is wrong any more, clear NEED_CHECK, flushed before and after.

Differs from QEMU (dossier §9.1), which clears the bit first, mends neither double references nor
leaks, and calls an image mended that is not.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from contextlib import suppress

from qedasync.check.lanes import as_bytes, as_lanes, indices_of, without
from qedasync.check.marks import Flags
from qedasync.check.reader import PIECE, Hole, Pacer, Progress, is_zero, read_piece
from qedasync.check.result import Action, ActionKind, Bounded
from qedasync.check.scan import Scanner, sector_writes
from qedasync.check.survey import Survey
from qedasync.check.walk import Walk
from qedasync.engine.core import Engine
from qedasync.engine.metadata import load_l1
from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.format.geometry import ENTRY_BYTES, SLICE_BYTES
from qedasync.format.header import usable_file_size
from qedasync.format.table import SECTOR_ENTRIES, pack_entries, sector_span, unpack_entries
from qedasync.waiting import until_done

__all__ = ["Repair", "mend"]

ZERO_CLUSTER = 1
"""The entry of a cluster that reads as zeroes."""


class Repair:
    """Mends one image; nobody else is inside it, and the allocator ends where the file does.

    Attributes:
        found: what was there before.
        left: what is there now.
        actions: what has been done.
        clusters_cut: leaked clusters cut off.
    """

    def __init__(self, engine: Engine, progress: Progress | None, max_pages: int) -> None:
        self.actions: Bounded[Action] = Bounded()
        self.clusters_cut = 0
        self.read_errno: int | None = None
        self._engine = engine
        self._progress = progress
        self._max_pages = max_pages

    async def run(self) -> None:
        """Mend what can be mended.

        Raises:
            StorageError: something could not be written or flushed; the rest is as it was.

        Order: see the module. Cancellation: between steps; each leaves the image whole.
        """
        self.found = self.left = await self._survey()
        if self.found.to_clear:
            await self._mend(_Clearing)
            await self._engine.sync()
        if self.found.may_cut:
            await self._cut()
        if self.found.to_copy and not self.found.cut_short:
            await self._mend(_Copying)
            await self._engine.sync()
        if self.actions.items:
            self.found.tables.forget()
            self.left = await self._survey()
        self.left.tables.forget()
        await self._settle_need_check()

    async def _mend(self, kind: type[_Mending]) -> None:
        mending = kind(self._engine, self.found, self._pacer(), self.actions)
        await mending.go_through()
        self.read_errno = self.read_errno or mending.read_errno

    async def _survey(self) -> Survey:
        engine = self._engine
        return await Survey(engine.storage, engine.geometry, self._pacer(), self._max_pages).run()

    def _pacer(self) -> Pacer:
        return Pacer(self._progress)

    async def _cut(self) -> None:
        engine, end = self._engine, self.found.image_end_offset
        await engine.storage.truncate(end)
        engine.allocator.end_of_file = end
        self.clusters_cut = self.found.tail
        self.actions.add(Action(ActionKind.CUT_TAIL, offset=end))
        await engine.sync()

    async def _settle_need_check(self) -> None:
        need_check = self._engine.need_check
        need_check.may_clear = not self.left.corruptions and not self.left.check_errors
        if need_check.is_set and need_check.may_clear:
            await need_check.clear()
            self.actions.add(Action(ActionKind.CLEAR_NEED_CHECK))


async def mend(engine: Engine, progress: Progress | None, max_pages: int) -> Repair:
    """Run a repair; the engine takes over what is on disk then, however it ended.

    Locks: the caller has the image to itself. Raises and cancellation: as :meth:`Repair.run`.
    """
    _end_where_the_file_does(engine)
    repair = Repair(engine, progress, max_pages)
    try:
        await repair.run()
    finally:
        await _load_again(engine)
    return repair


def _end_where_the_file_does(engine: Engine) -> None:
    size = usable_file_size(engine.storage.size, engine.geometry.cluster_size)
    engine.allocator.end_of_file = size


async def _load_again(engine: Engine) -> None:
    """Take over what is on disk now."""
    _end_where_the_file_does(engine)
    engine.tables.reset(engine.tables.l1)  # the slices go at once, whatever comes next
    load = engine.tasks.start(
        load_l1(engine.storage, engine.geometry, engine.image_size), "L1 load"
    )
    try:
        await until_done(load)  # a repair that is cancelled here must not leave an image without L1
    finally:
        if load.cancelled():
            engine.fail(asyncio.CancelledError())
        elif error := load.exception():
            engine.fail(error)
        else:
            engine.tables.reset(load.result())
    load.result()


class _Mending(Walk):
    """A walk that changes tables; unreadable ones stay, and the survey after it counts them."""

    def __init__(
        self, engine: Engine, found: Survey, pacer: Pacer, actions: Bounded[Action]
    ) -> None:
        super().__init__(engine.storage, engine.geometry, found.tables, pacer, found.max_pages)
        self.engine = engine
        self.actions = actions
        self.read_errors = 0
        self.read_errno: int | None = None
        pacer.total = found.pacer.total

    @property
    def end_of_file(self) -> int:
        return self.engine.allocator.end_of_file

    def on_read_error(self, offset: int, error: StorageError) -> None:
        self.read_errors += 1
        self.read_errno = self.read_errno or error.errno

    def act(self, kind: ActionKind, entries: Sequence[tuple[int, int | None, int]], n: int) -> None:
        """Note what is done to ``n`` entries: the L1 index, the L2 index, what the first were."""
        listed = entries[: self.actions.room]
        for index, l2_index, value in listed:
            self.actions.add(Action(kind, index, l2_index, value))
        self.actions.omitted += n - len(listed)


class _Clearing(_Mending):
    """Sets invalid entries to 0."""

    async def go_through(self) -> None:
        await self._clear_l1()
        scanner = Scanner(self.geometry, self.end_of_file, Flags(0))
        for index, offset in zip(*self.tables.sound, strict=True):
            await self.visit(index, offset, scanner)
            self.pacer.done += 1
        await self.visit_shared_tables(Flags(0), 0)

    async def _clear_l1(self) -> None:
        offset = self.geometry.l1_table_offset
        async for first, lanes, wrong in self.l1():
            if wrong:
                self._note(first, None, lanes, wrong)
                await self._clear(offset, first, lanes, wrong, Event.L1_UPDATE)

    async def visit(self, index: int, offset: int, scanner: Scanner) -> None:
        await self._clear_table(index, offset, scanner)

    async def visit_shared(self, index: int, offset: int, scanner: Scanner, used: int) -> None:
        await self._clear_table(index, offset, scanner, listed=False)

    async def _clear_table(
        self, index: int, offset: int, scanner: Scanner, *, listed: bool = True
    ) -> None:
        async for first, piece in self.table(index, offset, scanner):
            if scanner.run_in(piece):
                continue
            for at in range(0, len(piece), SLICE_BYTES):
                lanes, start = as_lanes(piece[at : at + SLICE_BYTES]), first + at // ENTRY_BYTES
                wrong = scanner.wrong(lanes) if lanes else 0
                if wrong:
                    if listed:
                        self._note(index, start, lanes, wrong)
                    await self._clear(offset, start, lanes, wrong, Event.L2_UPDATE)
                if self.pacer.due():
                    await self.pacer.pause()

    def _note(self, index: int, l2_index: int | None, lanes: int, wrong: int) -> None:
        """Note the wrong entries of a slice, which begins at these indices."""
        some: list[tuple[int, int | None, int]] = []
        if self.actions.room:
            entries = unpack_entries(as_bytes(lanes))
            for i in indices_of(wrong):
                at = (index + i, None) if l2_index is None else (index, l2_index + i)
                some.append((*at, entries[i]))
        self.act(ActionKind.CLEAR_ENTRY, some, wrong.bit_count())

    async def _clear(self, offset: int, first: int, lanes: int, wrong: int, event: Event) -> None:
        """Clear the wrong entries of a slice, which begins at ``first`` in the table there."""
        entries = unpack_entries(as_bytes(without(lanes, wrong)))
        changed = indices_of(wrong)
        await self.storage.write_many(sector_writes(offset, first, entries, changed, event))


class _Copying(_Mending):
    """Gives every entry but the first that names a cluster a copy of its own."""

    def __init__(
        self, engine: Engine, found: Survey, pacer: Pacer, actions: Bounded[Action]
    ) -> None:
        super().__init__(engine, found, pacer, actions)
        self._hole = Hole(engine.storage)

    async def visit(self, index: int, offset: int, scanner: Scanner) -> None:
        async for first, piece in self.table(index, offset, scanner):
            trouble = await self.scan(piece, scanner)
            if not trouble.doubles:
                continue
            entries, used = unpack_entries(piece), self.used(scanner)
            old = entries[:]
            changed = await self._separate(entries, trouble.doubles, scanner, used)
            if changed:
                done = [(index, first + i, old[i]) for i in changed]
                self.act(ActionKind.COPY_CLUSTER, done, len(done))
                await self.engine.sync()
                writes = sector_writes(offset, first, entries, changed, Event.L2_UPDATE)
                await self.storage.write_many(writes)

    async def visit_shared(self, index: int, offset: int, scanner: Scanner, used: int) -> None:
        """Copy a table, with copies of the clusters that others name; only then link it."""
        size = self.geometry.table_size
        if not self.may_copy(size, used):
            return
        self.act(ActionKind.COPY_TABLE, [(index, None, offset)], 1)
        errors = self.read_errors
        copy = self._take(size, scanner)
        await self.storage.write_zeroes(copy, self.geometry.table_bytes, Event.L2_ALLOC_WRITE)
        async for first, piece in self.table(index, offset, scanner):
            trouble = await self.scan(piece, scanner)
            entries = unpack_entries(piece)
            await self._separate(entries, trouble.doubles, scanner, used)
            data = pack_entries(entries)
            await self.storage.write([data], copy + first * ENTRY_BYTES, Event.L2_ALLOC_WRITE)
        if self.read_errors == errors:
            await self.engine.sync()
            await self._link(index, copy)
            self.tables.settle(index, copy)

    async def _link(self, index: int, table_offset: int) -> None:
        first = sector_span(index, 1)[0]
        l1 = self.geometry.l1_table_offset
        length = SECTOR_ENTRIES * ENTRY_BYTES
        data = await read_piece(self.storage, l1 + first * ENTRY_BYTES, length, Event.CHECK_LOAD)
        entries = unpack_entries(data)
        entries[index - first] = table_offset
        changed = [index - first]
        await self.storage.write_many(sector_writes(l1, first, entries, changed, Event.L1_UPDATE))

    async def _separate(
        self, entries: array[int], doubles: list[int], scanner: Scanner, used: int
    ) -> list[int]:
        """Let ``doubles`` among ``entries`` name copies; answers which of them do now."""
        changed = []
        for i in doubles[: self.copies_left(used)]:
            self.may_copy(1, used)
            entry = await self._copy_cluster(entries[i], scanner)
            if entry is not None:
                entries[i] = entry
                changed.append(i)
            if self.pacer.due():
                await self.pacer.pause()
        return changed

    async def _copy_cluster(self, offset: int, scanner: Scanner) -> int | None:
        """An entry for a copy of a cluster: ZERO if it has nothing else; None if it is unreadable.

        Order: the copy is not flushed here.
        """
        copy = 0
        for at in range(0, self.geometry.cluster_size, PIECE):
            length = min(PIECE, self.geometry.cluster_size - at)
            if self._hole.end(offset + at) >= offset + at + length and not copy:
                continue
            try:
                data = await read_piece(self.storage, offset + at, length, Event.CHECK_COPY)
            except StorageError as error:
                self.read_errno = self.read_errno or error.errno
                return None
            if not copy:
                if is_zero(data):
                    await self._look_for_hole(offset + at)
                    continue
                copy = self._take(1, scanner)
                await self.storage.write_zeroes(copy, at, Event.CHECK_COPY)
            await self.storage.write([data], copy + at, Event.CHECK_COPY)
        return copy or ZERO_CLUSTER

    async def _look_for_hole(self, pos: int) -> None:
        with suppress(StorageError):  # it need not know
            await self._hole.look(pos)

    def _take(self, n: int, scanner: Scanner) -> int:
        """New clusters; from now on they are as valid, and as much in use, as any."""
        offset = self.engine.allocator.take(n)
        scanner.add_clusters(offset, n, self.end_of_file)
        return offset
