"""Comparing two host files piece by piece, on threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from qedasync import Extent
from qedasync.jobs.buffers import new_buffer
from qedasync.jobs.lending import HostFile, is_direct

__all__ = ["Pair", "Pairs"]


class Pair(NamedTuple):
    """A piece of both disks.

    Attributes:
        start, length: guest bytes.
        runs: what both disks have there.
    """

    start: int
    length: int
    runs: tuple[Extent, Extent]


class Pairs:
    """Reads and compares pieces that lie in host files.

    Args:
        first, second: the files, or None where a disk has none to lend.
        size: bytes of a piece at most.
    """

    def __init__(self, first: HostFile | None, second: HostFile | None, size: int) -> None:
        self._files = (first, second)
        self._size = size
        self._buffers: list[tuple[bytearray, bytearray]] = []
        self._zeroes = bytes(size)

    def can_read(self, runs: tuple[Extent, Extent]) -> bool:
        """Whether what both disks have there lies in the files, as far as it is not zeroes."""
        return all(
            run.zero or (file is not None and is_direct(run))
            for file, run in zip(self._files, runs, strict=True)
        )

    def cut(self, start: int, end: int, runs: tuple[Extent, Extent]) -> Iterator[Pair]:
        """A run of both disks in pieces; none if there is nothing to compare, or no file."""
        if (runs[0].zero and runs[1].zero) or not self.can_read(runs):
            return
        for pos in range(start, end, self._size):
            yield Pair(pos, min(self._size, end - pos), runs)

    def compare(self, pair: Pair) -> bool:
        """Whether both read the same; on a thread."""
        buffers = self._buffers.pop() if self._buffers else self._new_buffers()
        one, two = (self._read(which, pair, buffers[which]) for which in (0, 1))
        if pair.length == self._size:
            same = one == two
        else:
            same = one[: pair.length] == two[: pair.length]
        self._buffers.append(buffers)
        return same

    def _new_buffers(self) -> tuple[bytearray, bytearray]:
        return new_buffer(self._size), new_buffer(self._size)

    def _read(self, which: int, pair: Pair, buffer: bytearray) -> bytearray | bytes:
        run, file = pair.runs[which], self._files[which]
        if run.zero:
            return self._zeroes
        assert file is not None
        assert run.offset is not None
        with memoryview(buffer) as view:
            file.read_into([view[: pair.length]], run.offset + pair.start - run.start)
        return buffer
