"""The order in which a check goes through an image, whatever it does there.

Tables are marked before data, so where both want a cluster it is the data entry that is wrong. A
table that shares clusters with that of an earlier L1 entry comes last: whatever both name belongs
to the sound tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from qedasync.check.lanes import Judge, as_lanes
from qedasync.check.marks import Flags, Marks, marks_for, page_of, span_of
from qedasync.check.reader import Pacer, TableReader
from qedasync.check.scan import Scanner, Trouble
from qedasync.check.tables import TableList
from qedasync.errors import StorageError
from qedasync.format.geometry import ENTRY_BYTES, SLICE_BYTES, SLICE_ENTRIES, Geometry
from qedasync.storage.base import Storage

__all__ = ["Walk"]

_ALWAYS_COPIED = 64 << 20
_MOST_COPIES = 1 << 16


class Walk(ABC):
    """A walk through all tables.

    Copies are counted before they are made, and may at most double what the image uses, nor be more
    than 65536 at once: a hostile image names one cluster a million times.
    """

    def __init__(
        self, storage: Storage, geometry: Geometry, tables: TableList, pacer: Pacer, max_pages: int
    ) -> None:
        self.storage = storage
        self.geometry = geometry
        self.tables = tables
        self.pacer = pacer
        self.reader = TableReader(storage, geometry, pacer, self.on_read_error)
        self.reading: int | None = None  # the L1 index whose table is being read
        self.max_pages = max_pages
        self.cut_short = False  # no more windows
        self._copies = 0

    @property
    @abstractmethod
    def end_of_file(self) -> int:
        """Where the usable part of the file ends now."""

    @abstractmethod
    def on_read_error(self, offset: int, error: StorageError) -> None:
        """A table could not be read; it is left out from there on."""

    @abstractmethod
    async def visit(self, index: int, offset: int, scanner: Scanner) -> None:
        """A sound table."""

    @abstractmethod
    async def visit_shared(self, index: int, offset: int, scanner: Scanner, used: int) -> None:
        """A shared table; ``used`` clusters are in use without those."""

    async def begin_window(self, marks: Marks | Flags) -> None:
        """Nothing has been marked yet."""
        return

    async def end_window(self, marks: Marks | Flags, scanner: Scanner) -> None:
        """All of the image has been marked, in the window of ``marks``."""
        return

    async def go_through(self) -> None:
        """Visit all tables, once for each window."""
        for marks in marks_for(self.end_of_file >> self.geometry.cluster_bits, self.max_pages):
            self.pacer.done = 0
            await self.begin_window(marks)
            await self._mark_tables(marks)
            scanner = Scanner(self.geometry, self.end_of_file, marks)
            for index, offset in zip(*self.tables.sound, strict=True):
                await self.visit(index, offset, scanner)
                self.pacer.done += 1
            if self.tables.n_shared:
                await self.visit_shared_tables(marks, self.used(scanner))
            await self.end_window(marks, scanner)
            if self.cut_short:
                break
            self.pacer.done = self.pacer.total
            self.pacer.report()

    async def _mark_tables(self, marks: Marks | Flags) -> None:
        marks.mark_run(
            self.geometry.l1_table_offset >> self.geometry.cluster_bits, self.geometry.table_size
        )
        for first, n in self.tables.runs(*span_of(marks)):
            if page_of(first) >= marks.stop_page:
                break  # the window has shrunk meanwhile
            marks.mark_run(first, n)
            if self.pacer.due():
                await self.pacer.pause()

    async def visit_shared_tables(self, marks: Marks | Flags, used: int) -> None:
        """Visit the shared tables that a repair copies."""
        scanner = Scanner(self.geometry, self.end_of_file, marks)
        for index, offset in list(self.tables.rescued.items()):
            await self.visit_shared(index, offset, scanner, used)
            self.pacer.done += 1

    async def l1(self) -> AsyncIterator[tuple[int, int, int]]:
        """The slices of L1: the first index, the entries and which of them are wrong, as lanes."""
        judge = Judge(self.geometry, self.end_of_file, tables=True)
        async for first, raw in self.reader.l1():
            lanes = as_lanes(raw)
            yield first, lanes, judge.wrong(lanes)

    def table(
        self, index: int, offset: int, scanner: Scanner
    ) -> AsyncIterator[tuple[int, memoryview]]:
        """The pieces of the table of an L1 entry, to be scanned in order."""
        self.reading = index
        scanner.start_table()
        return self.reader.table(offset)

    async def scan(self, piece: memoryview, scanner: Scanner) -> Trouble:
        """Judge a piece of a table; gives the loop turns."""
        first = scanner.run_in(piece)
        if first:
            trouble = scanner.scan_run(first, len(piece) // ENTRY_BYTES)
            if self.pacer.due():
                await self.pacer.pause()
            return trouble
        trouble = Trouble()
        for n in range(len(piece) // SLICE_BYTES):
            found = scanner.scan(bytes(piece[n * SLICE_BYTES : (n + 1) * SLICE_BYTES]))
            if found is not None:
                trouble.extend(n * SLICE_ENTRIES, found)
            if self.pacer.due():
                await self.pacer.pause()
        return trouble

    def used(self, scanner: Scanner) -> int:
        """How many clusters are known to be in use."""
        tables = (1 + self.tables.n_sound) * self.geometry.table_size
        return tables + scanner.allocated - scanner.bad

    def may_copy(self, n: int, used: int) -> bool:
        """Whether ``n`` clusters more may be copied; counts them if so."""
        if n > self.copies_left(used):
            return False
        self._copies += n
        return True

    def copies_left(self, used: int) -> int:
        """How many clusters more may be copied."""
        most = max(used, _ALWAYS_COPIED >> self.geometry.cluster_bits)
        return min(most, _MOST_COPIES) - self._copies
