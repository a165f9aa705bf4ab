"""How QEMU's block layer cuts requests to the limits of a node: by arithmetic alone.

A node may want requests whole in blocks (``align``), no longer than some size (``max-transfer``),
and zeroes in blocks of their own. All of these are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Margins", "aligned", "pieces", "zero_pieces"]

_BOUNCE = 16 << 20  # zeroes that QEMU writes as data at once


def aligned(offset: int, length: int, align: int) -> tuple[int, int]:
    """(offset, length) of the whole blocks that a request touches."""
    start = offset // align * align
    return start, -(-(offset + length) // align) * align - start


def pieces(offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of a request's pieces of at most ``most`` bytes; 0 for any number."""
    step = most or length
    for done in range(0, length, step or 1):
        yield offset + done, min(step, length - done)


def zero_pieces(
    offset: int, length: int, *, unit: int, most: int, most_data: int = 0
) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, whether as data) of a zero write's pieces.

    Args:
        unit: zeroes go in whole blocks of it; what is less is written as data.
        most: for a piece of zeroes, in whole units; 0 for any number.
        most_data: for a piece of data; 0 for any number.
    """
    end = offset + length
    while offset < end:
        left = end - offset
        to_unit = -offset % unit
        if to_unit or left < unit:
            step = min(left, to_unit or left, most_data or _BOUNCE, _BOUNCE)
            yield offset, step, True
        else:
            step = min(left - left % unit, most - most % unit or left)
            yield offset, step, False
        offset += step


@dataclass(frozen=True, slots=True)
class Margins:
    """What a write lacks to whole blocks, and so is read before.

    Attributes:
        start, stop: the whole blocks.
        head, tail: whether they begin before the write, and end after it.
        align: bytes of a block.
    """

    start: int
    stop: int
    head: bool
    tail: bool
    align: int

    @classmethod
    def of(cls, offset: int, length: int, align: int) -> Margins:
        """The margins of a write; it has at least a byte."""
        start, whole = aligned(offset, length, align)
        stop = start + whole
        return cls(start, stop, start < offset, offset + length < stop, align)

    @property
    def merged(self) -> bool:
        """Whether both blocks, or the only one, are read and written at once."""
        n_blocks = (self.stop - self.start) // self.align
        return n_blocks == 1 or (n_blocks == 2 and self.head and self.tail)

    def reads(self) -> Iterator[tuple[int, int, list[str]]]:
        """(offset, length, ends it is for) of each read."""
        ends = ["head"] * self.head + ["tail"] * self.tail
        if ends and self.merged:
            yield self.start, self.stop - self.start, ends
            return
        for end in ends:
            yield self.start if end == "head" else self.stop - self.align, self.align, [end]
