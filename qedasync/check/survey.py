"""Counts what is in an image and what is wrong with it; lists what a repair would do.

Differs from QEMU: counts a data entry on a table as the entry's fault, not the table's (the sum is
the same); divides by the right cluster size, so it imagines no leaks; and looks into shared tables,
because a repair keeps them, so that what only they name is no leak.

Source: qemu 7.2 block/qed-check.c: qed_check, qed_check_l1_table, qed_check_l2_table.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Self

from qedasync.check.marks import Marks, page_of, windows
from qedasync.check.reader import Pacer
from qedasync.check.result import Action, ActionKind, Bounded, Finding, FindingKind, LeakRange
from qedasync.check.scan import Scanner, Trouble
from qedasync.check.walk import Shared, Walk
from qedasync.errors import StorageError
from qedasync.format.geometry import ENTRY_BYTES, Geometry
from qedasync.format.header import usable_file_size
from qedasync.format.table import unpack_entries
from qedasync.storage.base import Storage

__all__ = ["Survey"]


class _Doubles:
    """Doubly used clusters of one pass; those past its window are found again by the next."""

    def __init__(self) -> None:
        self.per_page: Counter[int] = Counter()
        self.findings: Bounded[Finding] = Bounded()
        self.copies: Bounded[Action] = Bounded()


class Survey(Walk):
    """What is in one image; :meth:`run` fills it in.

    Attributes:
        corruptions, check_errors, allocated, fragmented, leaks: counters, as in
            :class:`~qedasync.check.result.CheckResult`.
        to_clear, to_copy: how many entries a repair would clear, and give a copy.
        left_behind: how many are too many to copy.
        tail: leaked clusters at the end of the file.
        findings, clears, copies, leak_ranges: lists.
    """

    def __init__(self, storage: Storage, geometry: Geometry, pacer: Pacer, max_pages: int) -> None:
        super().__init__(storage, geometry, Shared(), pacer, max_pages)
        self._end_of_file = usable_file_size(storage.size, geometry.cluster_size)
        self.corruptions = self.check_errors = 0
        self.read_errno: int | None = None
        self.allocated = self.fragmented = 0
        self.leaks = self.tail = 0
        self.to_clear = self.to_copy = self.left_behind = 0
        self.findings: Bounded[Finding] = Bounded()
        self.clears: Bounded[Action] = Bounded()
        self.copies: Bounded[Action] = Bounded()
        self.leak_ranges: Bounded[LeakRange] = Bounded()
        self._leak = (0, 0)  # the last one, which may go on
        self._failed: set[int] = set()
        self._is_first_pass = True
        self._doubles = _Doubles()

    @property
    def end_of_file(self) -> int:
        return self._end_of_file

    @property
    def image_end_offset(self) -> int:
        """File offset past the last cluster in use."""
        return self._end_of_file - (self.tail << self.geometry.cluster_bits)

    @property
    def may_cut(self) -> bool:
        """Whether there is a tail that nothing can need: every table has been looked into."""
        return self.tail > 0 and self.shared.n == self.shared.n_rescued

    async def run(self) -> Self:
        """Look at everything."""
        await self._find_shared_tables()
        await self.go_through()
        self._end_leak()
        if self.check_errors:  # what the unread tables name would count as leaked
            self.leaks = self.tail = 0
            self.leak_ranges = Bounded()
        return self

    def on_read_error(self, offset: int, error: StorageError) -> None:
        if offset in self._failed:
            return  # an earlier pass met it
        self._failed.add(offset)
        self.check_errors += 1
        self.read_errno = self.read_errno or error.errno
        level, index = 2, self.reading
        if index is None:
            level, index = 1, (offset - self.geometry.l1_table_offset) // ENTRY_BYTES
        text = f"the L{level} table at file offset {offset:#x} cannot be read: {error}"
        self._find(self.findings, FindingKind.READ_ERROR, index, None, offset, text, level)

    # ---------------------------------------------------------------- L1

    async def _find_shared_tables(self) -> None:
        """See which tables lie where one may, and which of them lie alone."""
        bits, size = self.geometry.cluster_bits, self.geometry.table_size
        for marks in windows(self.max_pages):
            n_valid = 0
            doubles: Counter[int] = Counter()
            marks.mark_run(self.geometry.l1_table_offset >> bits, size)
            async for first, entries in self.reader.l1():
                if marks.first_page == 0:
                    self._note_invalid_tables(first, entries)
                for index, offset in self.valid_tables(first, entries):
                    n_valid += 1
                    taken = marks.mark_run(offset >> bits, size)
                    if taken:
                        doubles.update(map(page_of, taken))
                        self._note_shared_table(index, offset)
            self.corruptions += _in_window(doubles, marks)
        self.shared.n_sound = n_valid - self.shared.n
        self.pacer.total = n_valid

    def _note_invalid_tables(self, first: int, entries: array[int]) -> None:
        valid = dict(self.valid_tables(first, entries))
        for index, offset in enumerate(entries, first):
            if offset and index not in valid:
                self.to_clear += 1
                self._note_invalid(1, index, None, offset)

    def _note_shared_table(self, index: int, offset: int) -> None:
        if self.shared.add(index):
            text = f"L1 entry {index} is {offset:#x}, on the L2 table of an earlier entry"
            self._find(self.findings, FindingKind.SHARED_TABLE, index, None, offset, text)

    # ---------------------------------------------------------------- L2

    async def visit(self, index: int, offset: int, scanner: Scanner) -> None:
        async for first, piece in self.table(index, offset, scanner):
            trouble = await self.scan(piece, scanner)
            if trouble:
                await self._note(index, first, piece, trouble, self.used(scanner))

    async def visit_shared(self, index: int, offset: int, scanner: Scanner, used: int) -> None:
        if self._is_first_pass:
            if not self.may_copy(self.geometry.table_size, used):
                self.left_behind += 1
                return
            self.shared.rescue(index)
            self.to_copy += 1
            self._doubles.copies.add(Action(ActionKind.COPY_TABLE, index, None, offset))
        elif index not in self.shared.rescued:
            return
        async for first, piece in self.table(index, offset, scanner):
            trouble = await self.scan(piece, scanner)
            if trouble:
                await self._note(index, first, piece, trouble, used, shared=True)

    async def end_window(self, marks: Marks, scanner: Scanner) -> None:
        if self._is_first_pass:
            self.allocated, self.fragmented = scanner.allocated, scanner.fragmented
        self._is_first_pass = False
        found, self._doubles = self._doubles, _Doubles()
        self.corruptions += _in_window(found.per_page, marks)
        bits = self.geometry.cluster_bits
        found.findings.items = [
            f for f in found.findings.items if page_of(f.value >> bits) < marks.stop_page
        ]
        self.findings.extend(found.findings)
        self.copies.extend(found.copies)
        await self._count_leaks(marks)

    async def _note(
        self,
        index: int,
        first: int,
        piece: memoryview,
        trouble: Trouble,
        used: int,
        *,
        shared: bool = False,
    ) -> None:
        """Note what is wrong in a piece of a table; in a shared one it is a mere consequence."""
        entries = unpack_entries(piece)
        if self._is_first_pass:
            self.to_clear += len(trouble.invalid)
            for i in [] if shared else trouble.invalid:
                self._note_invalid(2, index, first + i, entries[i])
                if self.pacer.due():
                    await self.pacer.pause()
        for i in trouble.doubles:
            copied = self.may_copy(1, used)
            self.to_copy += copied
            self.left_behind += not copied
            if not shared:
                self._note_double(index, first + i, entries[i], copied)
            if self.pacer.due():
                await self.pacer.pause()

    def _note_invalid(self, level: int, index: int, l2_index: int | None, entry: int) -> None:
        self.corruptions += 1
        where = f"L1 entry {index}" if level == 1 else f"L2 entry {l2_index} of table {index}"
        what = "L2 table" if level == 1 else "data cluster"
        text = f"{where} is {entry:#x}, where no {what} can be"
        self._find(self.findings, FindingKind.INVALID_ENTRY, index, l2_index, entry, text)
        if self.clears.has_room():
            self.clears.add(Action(ActionKind.CLEAR_ENTRY, index, l2_index, entry))

    def _note_double(self, index: int, l2_index: int, entry: int, copied: bool) -> None:
        doubles = self._doubles
        doubles.per_page[page_of(entry >> self.geometry.cluster_bits)] += 1
        text = f"L2 entry {l2_index} of table {index} is {entry:#x}, a cluster in use already"
        self._find(doubles.findings, FindingKind.SHARED_CLUSTER, index, l2_index, entry, text)
        if copied and doubles.copies.has_room():
            doubles.copies.add(Action(ActionKind.COPY_CLUSTER, index, l2_index, entry))

    def _find(
        self,
        findings: Bounded[Finding],
        kind: FindingKind,
        index: int,
        l2_index: int | None,
        value: int,
        text: str,
        level: int | None = None,
    ) -> None:
        if findings.has_room():
            pos = index << self.geometry.l1_shift
            pos += (l2_index or 0) << self.geometry.cluster_bits
            level = level or (1 if l2_index is None else 2)
            findings.add(Finding(kind, level, index, l2_index, value, pos, text))

    # ------------------------------------------------------------- leaks

    async def _count_leaks(self, marks: Marks) -> None:
        stop = self._end_of_file >> self.geometry.cluster_bits
        for first, n in marks.gaps(self.geometry.header_size, stop):
            if n:
                self._note_leak(first, n)
            if self.pacer.due():
                await self.pacer.pause()

    def _note_leak(self, first: int, n: int) -> None:
        self.leaks += n
        start, end = self._leak
        if first == end:  # it crosses the border of a window
            self._leak = (start, end + n)
            return
        self._end_leak()
        self._leak = (first, first + n)

    def _end_leak(self) -> None:
        bits = self.geometry.cluster_bits
        start, end = self._leak
        if end:
            self.leak_ranges.add(LeakRange(start << bits, (end - start) << bits))
            self.tail = end - start if end << bits == self._end_of_file else 0


def _in_window(per_page: Counter[int], marks: Marks) -> int:
    return sum(n for page, n in per_page.items() if page < marks.stop_page)
