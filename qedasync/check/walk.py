"""The order in which a check goes through an image, whatever it does there.

Tables are marked before data, so where both want a cluster it is the data entry that is wrong. A
table that shares clusters with that of an earlier L1 entry comes last: whatever both name belongs
to the sound tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import AsyncIterator, Iterator

from qedasync.check.marks import Marks, windows
from qedasync.check.reader import Pacer, TableReader
from qedasync.check.scan import Scanner, Trouble
from qedasync.errors import StorageError
from qedasync.format.geometry import SLICE_BYTES, SLICE_ENTRIES, Geometry
from qedasync.storage.base import Storage

__all__ = ["Walk", "Shared"]

_ALWAYS_COPIED = 64 << 20


class Shared:
    """The L2 tables that share clusters with that of an earlier L1 entry, by L1 index.

    Attributes:
        indices: all of them.
        rescued: those that a repair copies.
        n, n_rescued: how many there are.
        n_sound: how many tables lie alone, or were there first.
    """

    def __init__(self) -> None:
        self.indices = Marks()
        self.rescued = Marks()
        self.n = 0
        self.n_rescued = 0
        self.n_sound = 0

    def add(self, index: int) -> bool:
        """Note a shared table; False if it was known."""
        if self.indices.mark_run(index, 1):
            return False
        self.n += 1
        return True

    def rescue(self, index: int) -> None:
        """Note that a repair copies this one."""
        self.rescued.mark_run(index, 1)
        self.n_rescued += 1

    def settle(self, index: int) -> None:
        """It has been copied, and is a table like any other."""
        self.indices.discard(index)
        self.rescued.discard(index)
        self.n -= 1
        self.n_rescued -= 1


class Walk(ABC):
    """A walk through all tables.

    Copies are counted before they are made, and may at most double what the image uses: a hostile
    image names one cluster a million times.
    """

    def __init__(
        self, storage: Storage, geometry: Geometry, shared: Shared, pacer: Pacer, max_pages: int
    ) -> None:
        self.storage = storage
        self.geometry = geometry
        self.shared = shared
        self.pacer = pacer
        self.reader = TableReader(storage, geometry, pacer, self.on_read_error)
        self.reading: int | None = None  # the L1 index whose table is being read
        self.max_pages = max_pages
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

    async def end_window(self, marks: Marks, scanner: Scanner) -> None:
        """All of the image has been marked, in the window of ``marks``."""
        return

    async def go_through(self) -> None:
        """Visit all tables, once for each window."""
        for marks in windows(self.max_pages):
            self.pacer.done = 0
            await self._mark_tables(marks)
            scanner = Scanner(self.geometry, self.end_of_file, marks)
            async for first, entries in self.reader.l1():
                for index, offset in self.tables(first, entries, shared=False):
                    await self.visit(index, offset, scanner)
                    self.pacer.done += 1
            if self.shared.n:
                await self._visit_shared_tables(marks, self.used(scanner))
            await self.end_window(marks, scanner)
            self.pacer.report()

    async def _mark_tables(self, marks: Marks) -> None:
        bits, size = self.geometry.cluster_bits, self.geometry.table_size
        marks.mark_run(self.geometry.l1_table_offset >> bits, size)
        async for first, entries in self.reader.l1():
            for _, offset in self.valid_tables(first, entries):
                marks.mark_run(offset >> bits, size)

    async def _visit_shared_tables(self, marks: Marks, used: int) -> None:
        scanner = Scanner(self.geometry, self.end_of_file, marks)
        async for first, entries in self.reader.l1():
            for index, offset in self.tables(first, entries, shared=True):
                await self.visit_shared(index, offset, scanner, used)
                self.pacer.done += 1

    def valid_tables(self, first: int, entries: array[int]) -> Iterator[tuple[int, int]]:
        """The index and file offset of each table that lies where one may lie."""
        valid = self.geometry.check_table_offset
        for index, offset in enumerate(entries, first):
            if offset and valid(offset, self.end_of_file):
                yield index, offset

    def tables(self, first: int, entries: array[int], *, shared: bool) -> Iterator[tuple[int, int]]:
        """Of the valid tables those that are shared, or those that are not."""
        for index, offset in self.valid_tables(first, entries):
            if (index in self.shared.indices) is shared:
                yield index, offset

    def table(
        self, index: int, offset: int, scanner: Scanner
    ) -> AsyncIterator[tuple[int, memoryview]]:
        """The pieces of the table of an L1 entry, to be scanned in order."""
        self.reading = index
        scanner.start_table()
        return self.reader.table(offset)

    async def scan(self, piece: memoryview, scanner: Scanner) -> Trouble:
        """Judge a piece of a table; gives the loop turns."""
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
        tables = (1 + self.shared.n_sound) * self.geometry.table_size
        return tables + scanner.allocated - scanner.bad

    def may_copy(self, n: int, used: int) -> bool:
        """Whether ``n`` clusters more may be copied; counts them if so."""
        if self._copies + n > max(used, _ALWAYS_COPIED >> self.geometry.cluster_bits):
            return False
        self._copies += n
        return True
