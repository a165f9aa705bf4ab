"""The check and the guest's view of an image once more, as plainly as they can be written.

For small files: everything is in sets and dictionaries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from qedasync.format.geometry import Geometry
from qedasync.format.header import Header, usable_file_size
from qedasync.storage.memory import SparseBytes

__all__ = ["Naive", "no_worse"]


@dataclass
class Naive:
    """What is in an image file.

    Attributes:
        corruptions, leaks, allocated: counters, as a check has them.
        need_check: the bit.
        mapped: guest position → content, where a sound data cluster is.
        dubious: guest positions whose data lies on an L2 table.
        invalid: guest positions whose L2 entry, or whole table, is invalid.
    """

    content: SparseBytes
    corruptions: int = 0
    allocated: int = 0
    leaks: set[int] = field(default_factory=set)
    need_check: bool = False
    mapped: dict[int, bytes] = field(default_factory=dict)
    dubious: set[int] = field(default_factory=set)
    invalid: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        header = Header.parse(self.read(0, 64))
        self.need_check = header.need_check
        self.geometry = geometry = Geometry.of(header)
        self.end = usable_file_size(self.content.size, geometry.cluster_size)
        self.used = set(self.clusters(geometry.l1_table_offset))
        sound, shared = self.tables()
        self.on_tables = {c for _, offset in (*sound, *shared) for c in self.clusters(offset)}
        for index, offset in sound:
            self.corruptions += self.data(index, offset)
        for index, offset in shared:
            allocated = self.allocated
            self.data(index, offset)
            self.allocated = allocated
        self.leaks = set(range(header.header_size, self.end // geometry.cluster_size)) - self.used

    def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.content.read_into(buffer, offset)
        return bytes(buffer)

    def entries(self, offset: int) -> Iterator[tuple[int, int]]:
        data = self.read(offset, self.geometry.table_bytes)
        for index, entry in enumerate(struct.unpack(f"<{len(data) // 8}Q", data)):
            if entry:
                yield index, entry

    def clusters(self, table_offset: int) -> range:
        first = table_offset // self.geometry.cluster_size
        return range(first, first + self.geometry.table_size)

    def tables(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The valid tables that lie alone, and those that lie on others."""
        sound: list[tuple[int, int]] = []
        shared: list[tuple[int, int]] = []
        for index, offset in self.entries(self.geometry.l1_table_offset):
            if not self.geometry.check_table_offset(offset, self.end):
                self.corruptions += 1
                self.invalid.add(index << self.geometry.l1_shift)
                continue
            taken = self.used & set(self.clusters(offset))
            self.corruptions += len(taken)
            (shared if taken else sound).append((index, offset))
            self.used |= set(self.clusters(offset))
        return sound, shared

    def data(self, index: int, offset: int) -> int:
        """Look at the entries of a table; answers how many are wrong."""
        wrong = 0
        for l2_index, entry in self.entries(offset):
            pos = (index << self.geometry.l1_shift) + l2_index * self.geometry.cluster_size
            if entry == 1:
                continue
            self.allocated += 1
            if not self.geometry.check_cluster_offset(entry, self.end):
                wrong += 1
                self.invalid.add(pos)
                continue
            cluster = entry // self.geometry.cluster_size
            wrong += cluster in self.used
            self.used.add(cluster)
            if cluster in self.on_tables:
                self.dubious.add(pos)
            else:
                self.mapped[pos] = self.read(entry, self.geometry.cluster_size)
        return wrong


def no_worse(before: Naive, after: Naive) -> None:
    """Fail if the guest sees other data, or data where there was none, or new damage.

    What lay on a table is not compared: the table's content changes.
    """
    zeroes = bytes(before.geometry.cluster_size)
    spans = {pos >> before.geometry.l1_shift for pos in before.invalid}
    for pos, data in before.mapped.items():
        if pos not in before.dubious:
            assert after.mapped.get(pos, zeroes) == data, f"at {pos:#x} the guest sees other data"
    for pos, data in after.mapped.items():
        known = pos in before.mapped or pos in before.dubious
        assert known or data == zeroes, f"at {pos:#x} the guest sees data that nobody wrote"
    for pos in after.invalid:
        assert pos >> before.geometry.l1_shift in spans, f"the entry for {pos:#x} became invalid"
    if not after.need_check:
        assert not (before.need_check and after.corruptions), "marked as sound too early"
