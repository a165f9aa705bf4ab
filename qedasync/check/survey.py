"""Counts what is in an image and what is wrong with it; lists what a repair would do.

Differs from QEMU: counts a data entry on a table as the entry's fault, not the table's (the sum is
the same); divides by the right cluster size, so it imagines no leaks; and looks into shared tables,
because a repair keeps them, so that what only they name is no leak.

Source: qemu 7.2 block/qed-check.c: qed_check, qed_check_l1_table, qed_check_l2_table.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import islice, repeat
from operator import rshift
from typing import Self

from qedasync.check.glance import Glance
from qedasync.check.lanes import as_bytes, indices_of, without
from qedasync.check.marks import Flags, Marks, page_of, pages_of, span_of
from qedasync.check.reader import Pacer
from qedasync.check.result import (
    LIST_LIMIT,
    Action,
    ActionKind,
    Bounded,
    Finding,
    FindingKind,
    LeakRange,
)
from qedasync.check.scan import Scanner, Trouble
from qedasync.check.tables import TableList
from qedasync.check.walk import Walk
from qedasync.errors import StorageError
from qedasync.format.geometry import ENTRY_BYTES, Geometry
from qedasync.format.header import usable_file_size
from qedasync.format.table import unpack_entries
from qedasync.storage.base import Storage

__all__ = ["Survey"]

_MANY_LEAKS = 1 << 23
"""Clusters of a window; fewer are no reason to end a check."""

_LOOKED_INTO = 16 << 20
"""Bytes of shared tables that one check looks into, or two tables; the rest is left behind."""


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
        super().__init__(storage, geometry, TableList(geometry), pacer, max_pages)
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
        return self.tail > 0 and self.tables.n_shared == len(self.tables.rescued)

    async def run(self) -> Self:
        """Look at everything."""
        await self._look_at_l1()
        if not await self._glance():
            await self.go_through()
        self._end_leak()
        if self.check_errors:  # what the unread tables name would count as leaked
            self.leaks = self.tail = 0
            self.leak_ranges = Bounded()
        return self

    async def _glance(self) -> bool:
        """Whether a quick look shows that at most some clusters are leaked; counts them."""
        if self.corruptions or self.check_errors:
            return False
        end = self._end_of_file
        glance = Glance(self.storage, self.geometry, self.tables, self.pacer, self.max_pages, end)
        if not await glance.run():
            return False
        self.allocated, self.fragmented = glance.allocated, glance.fragmented
        await self._count_leaks(glance.marks)
        return True

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

    async def _look_at_l1(self) -> None:
        """See which tables lie where one may, and which of them lie alone."""
        tables = self.tables
        async for first, lanes, wrong in self.l1():
            if wrong:
                self._note_invalid_tables(first, lanes, wrong)
            tables.offsets.extend(filter(None, unpack_entries(as_bytes(without(lanes, wrong)))))
        for _ in tables.sort():
            await self.pacer.pause()
        self.corruptions += tables.n_doubled
        with suppress(StorageError):  # then all of them are read
            await tables.find_full(self.storage)
        if tables.is_hopeless:
            self._note_hopeless()
        else:
            await self._place_tables()
        tables.end()
        self.pacer.total = tables.n

    async def _place_tables(self) -> None:
        async for first, lanes, wrong in self.l1():
            entries = unpack_entries(as_bytes(without(lanes, wrong)))
            before = self.tables.n_shared
            shared = self.tables.place(first, entries)
            listed = shared[: self.findings.room]
            for index, offset in listed:
                text = f"L1 entry {index} is {offset:#x}, on the L2 table of an earlier entry"
                self._find(self.findings, FindingKind.SHARED_TABLE, index, None, offset, text)
            self.findings.omitted += self.tables.n_shared - before - len(listed)

    def _note_hopeless(self) -> None:
        offset = min(self.tables.crowded)
        text = f"so many L2 tables lie on one another, as at {offset:#x}, that none is looked into"
        self._find(self.findings, FindingKind.SHARED_TABLE, 0, None, offset, text)

    def _note_invalid_tables(self, first: int, lanes: int, wrong: int) -> None:
        n = wrong.bit_count()
        self.to_clear += n
        self.corruptions += n
        entries, room = unpack_entries(as_bytes(lanes)), max(self.findings.room, self.clears.room)
        some = indices_of(wrong)[:room] if room else []
        self._list_invalid(1, [(first + i, None, entries[i]) for i in some], n)

    # ---------------------------------------------------------------- L2

    async def visit(self, index: int, offset: int, scanner: Scanner) -> None:
        async for first, piece in self.table(index, offset, scanner):
            trouble = await self.scan(piece, scanner)
            if trouble:
                self._note(index, first, piece, trouble, self.used(scanner))

    async def visit_shared_tables(self, marks: Marks | Flags, used: int) -> None:
        if not self._is_first_pass:
            await super().visit_shared_tables(marks, used)
            return
        tables, scanner = self.tables, Scanner(self.geometry, self._end_of_file, marks)
        for index, offset in tables.shared[: max(2, _LOOKED_INTO // self.geometry.table_bytes)]:
            if not self.may_copy(self.geometry.table_size, used):
                break
            tables.rescued[index] = offset
            self._doubles.copies.add(Action(ActionKind.COPY_TABLE, index, None, offset))
            await self.visit_shared(index, offset, scanner, used)
        self.to_copy += len(tables.rescued)
        self.left_behind += tables.n_shared - len(tables.rescued)

    async def visit_shared(self, index: int, offset: int, scanner: Scanner, used: int) -> None:
        async for first, piece in self.table(index, offset, scanner):
            trouble = await self.scan(piece, scanner)
            if trouble:
                self._note(index, first, piece, trouble, used, shared=True)

    async def end_window(self, marks: Marks | Flags, scanner: Scanner) -> None:
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
        leaks = self.leaks
        await self._count_leaks(marks)
        self._see_whether_it_is_worth_it(marks, self.leaks - leaks)

    def _see_whether_it_is_worth_it(self, marks: Marks | Flags, leaks: int) -> None:
        """End here if there are more windows, and most of this one is leaked.

        A sound image has no leaks, so it is looked at whole, however large it is. This one has two
        million entries that are strewn over a file of many TiB.
        """
        start, stop = span_of(marks)
        if marks.is_whole or self.check_errors or leaks < max(_MANY_LEAKS, (stop - start) // 2):
            return
        self.cut_short = True
        self.corruptions += 1
        self._end_leak()
        self.tail = 0
        offset = stop << self.geometry.cluster_bits
        text = f"most clusters are leaked up to file offset {offset:#x}, so the check ends there"
        self._find(self.findings, FindingKind.MOSTLY_LEAKED, 0, None, offset, text)

    def _note(
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
        entries, n = unpack_entries(piece), trouble.n_invalid
        n_copied = min(len(trouble.doubles), self.copies_left(used))
        self.may_copy(n_copied, used)
        self.to_copy += n_copied
        self.left_behind += len(trouble.doubles) - n_copied
        if self._is_first_pass:
            self.to_clear += n
        if shared:
            return
        if self._is_first_pass:
            self.corruptions += n
            some = islice(trouble.invalid(), min(n, max(self.findings.room, self.clears.room)))
            self._list_invalid(2, [(index, first + i, entries[i]) for i in some], n)
        shift = self.geometry.cluster_bits
        numbers = map(rshift, map(entries.__getitem__, trouble.doubles), repeat(shift))
        self._doubles.per_page.update(pages_of(numbers))
        doubles = [(first + i, entries[i]) for i in trouble.doubles[:LIST_LIMIT]]
        self._list_doubles(index, doubles, len(trouble.doubles), n_copied)

    def _list_invalid(self, level: int, some: list[tuple[int, int | None, int]], n: int) -> None:
        """List the first of ``n`` entries of one level: the L1 index, the L2 index, the entry."""
        listed = some[: self.findings.room]
        for index, l2_index, entry in listed:
            where = f"L1 entry {index}" if level == 1 else f"L2 entry {l2_index} of table {index}"
            what = "L2 table" if level == 1 else "data cluster"
            text = f"{where} is {entry:#x}, where no {what} can be"
            self._find(self.findings, FindingKind.INVALID_ENTRY, index, l2_index, entry, text)
        self.findings.omitted += n - len(listed)
        listed = some[: self.clears.room]
        for index, l2_index, entry in listed:
            self.clears.add(Action(ActionKind.CLEAR_ENTRY, index, l2_index, entry))
        self.clears.omitted += n - len(listed)

    def _list_doubles(self, index: int, some: list[tuple[int, int]], n: int, n_copied: int) -> None:
        """List the first of ``n`` entries of a table: the L2 index, the entry.

        The first ``n_copied`` get a copy.
        """
        findings, copies = self._doubles.findings, self._doubles.copies
        listed = some[: findings.room]
        for l2_index, entry in listed:
            text = f"L2 entry {l2_index} of table {index} is {entry:#x}, a cluster in use already"
            self._find(findings, FindingKind.SHARED_CLUSTER, index, l2_index, entry, text)
        findings.omitted += n - len(listed)
        listed = some[: min(n_copied, copies.room)]
        for l2_index, entry in listed:
            copies.add(Action(ActionKind.COPY_CLUSTER, index, l2_index, entry))
        copies.omitted += n_copied - len(listed)

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

    async def _count_leaks(self, marks: Marks | Flags) -> None:
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
        if end and self.leak_ranges.has_room():
            leak = LeakRange(start << bits, (end - start) << bits)
            self.leak_ranges.items.append(leak)
        if end:
            self.tail = end - start if end << bits == self._end_of_file else 0


def _in_window(per_page: Counter[int], marks: Marks | Flags) -> int:
    return sum(n for page, n in per_page.items() if page < marks.stop_page)
