"""A quick look at an image that is most likely sound: it tells whether anything is wrong, not what.

Of clusters that lie here and there nobody asks whether they were marked before. In the end there
are either as many marks as clusters that have been named, or some were named twice.
"""

from __future__ import annotations

from qedasync.check.marks import Flags, Marks
from qedasync.check.reader import Pacer
from qedasync.check.scan import Scanner
from qedasync.check.tables import TableList
from qedasync.check.walk import Walk
from qedasync.errors import StorageError
from qedasync.format.geometry import Geometry
from qedasync.storage.base import Storage

__all__ = ["Glance"]

_AT_ONCE = 1 << 16  # bytes of a table; takes some 0.4 ms


class _Doubt(Exception):
    """Something is wrong, or looks like it."""


class Glance(Walk):
    """A walk through the tables of an image of which L1 is sound.

    Attributes:
        marks: the clusters in use, once :meth:`run` has answered True.
        allocated, fragmented: as those of :class:`~qedasync.check.scan.Scanner`.
    """

    def __init__(
        self,
        storage: Storage,
        geometry: Geometry,
        tables: TableList,
        pacer: Pacer,
        max_pages: int,
        end_of_file: int,
    ) -> None:
        super().__init__(storage, geometry, tables, pacer, max_pages)
        self._end_of_file = end_of_file
        self.marks = Flags(0)
        self.allocated = self.fragmented = 0

    @property
    def end_of_file(self) -> int:
        return self._end_of_file

    async def run(self) -> bool:
        """Whether nothing is wrong. False, too, if there are too many clusters to find out."""
        try:
            await self.go_through()
        except _Doubt:
            return False
        return True

    def on_read_error(self, offset: int, error: StorageError) -> None:
        raise _Doubt

    async def visit(self, index: int, offset: int, scanner: Scanner) -> None:
        async for _, piece in self.table(index, offset, scanner):
            for start in range(0, len(piece), _AT_ONCE):
                if not scanner.glance(piece[start : start + _AT_ONCE]):
                    raise _Doubt
                if self.pacer.due():
                    await self.pacer.pause()

    async def visit_shared(self, index: int, offset: int, scanner: Scanner, used: int) -> None:
        raise _Doubt

    async def begin_window(self, marks: Marks | Flags) -> None:
        if not isinstance(marks, Flags):
            raise _Doubt
        marks.mark_run(0, self.geometry.header_size)

    async def end_window(self, marks: Marks | Flags, scanner: Scanner) -> None:
        assert isinstance(marks, Flags)
        in_use = self.geometry.header_size + self.used(scanner)
        if marks.is_blind and await self._count(marks) != in_use:
            raise _Doubt
        self.marks = marks
        self.allocated, self.fragmented = scanner.allocated, scanner.fragmented

    async def _count(self, marks: Flags) -> int:
        n = 0
        for some in marks.counts():
            n += some
            if self.pacer.due():
                await self.pacer.pause()
        return n
