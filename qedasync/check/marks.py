"""Which clusters are in use: a set of numbers in bounded memory.

Up to 16 million numbers have a byte each: the fastest there is. More than that are kept in pages of
512 bits, made when needed; each page is one integer, so a run of any length costs a few operations.
When there are too many pages the window shrinks: the upper half of them is forgotten and numbers
from there on are ignored, until another pass looks at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from operator import rshift

__all__ = ["Flags", "Marks", "marks_for", "windows", "page_of", "pages_of", "span_of", "MAX_PAGES"]

MAX_PAGES = 1 << 16
"""About 13 MiB; contiguous, enough for 2 TiB of 64 KiB clusters."""

_PAGE_COST = 256
"""Bytes of memory, more or less."""

_PAGE_BITS = 9
_PAGE = 1 << _PAGE_BITS
_MASK = _PAGE - 1
_FULL = (1 << _PAGE) - 1
_BIT = [1 << i for i in range(_PAGE)]
_NO_END = 1 << 64
_PAGES_AT_ONCE = 128
_COUNTED_AT_ONCE = 1 << 20
_ONES = b"\1" * (1 << 16)


def span_of(marks: Marks | Flags) -> tuple[int, int]:
    """The numbers in the window now."""
    return marks.first_page << _PAGE_BITS, marks.stop_page << _PAGE_BITS


def page_of(number: int) -> int:
    """The page that a number is on."""
    return number >> _PAGE_BITS


def pages_of(numbers: Iterable[int]) -> Iterator[int]:
    """The page of each number."""
    return map(rshift, numbers, repeat(_PAGE_BITS))


class Flags:
    """A set of numbers from 1 to some limit, which may grow.

    Attributes:
        first_page, stop_page, is_whole: as those of :class:`Marks`; everything is in the window.
        is_blind: whether :meth:`mark_blindly` has been called: only a count can tell now.
    """

    first_page = 0
    stop_page = _NO_END
    is_whole = True

    def __init__(self, limit: int) -> None:
        self._flags = bytearray(max(limit, 1))
        self.is_blind = False
        self._flags[0] = 1  # so that mark_each can pass over it

    def mark_run(self, first: int, n: int) -> list[int]:
        """Mark ``n`` numbers from ``first`` on; those that were marked already are answered."""
        flags, stop = self._flags, first + n
        if stop > len(flags):
            flags.extend(bytes(stop - len(flags)))
        doubles = []
        if flags.find(1, first, stop) >= 0:
            doubles = [i for i in range(first, stop) if flags[i]]
        flags[first:stop] = _ONES[:n] if n <= len(_ONES) else b"\1" * n
        return doubles

    def mark_each(self, numbers: Sequence[int]) -> list[int]:
        """Mark each number but 0; answers the indices of those that were marked."""
        flags = self._flags
        doubles = []
        for i, number in enumerate(numbers):
            if not flags[number]:
                flags[number] = 1
            elif number:
                doubles.append(i)
        return doubles

    def mark_blindly(self, numbers: Iterable[int]) -> bool:
        """Mark each number, whether it was marked or not; answers whether one of them is 0.

        Raises:
            IndexError: a number is not below the limit.
        """
        self.is_blind = True
        flags = self._flags
        flags[0] = 0
        for number in numbers:
            flags[number] = 1
        has_zero = bool(flags[0])
        flags[0] = 1
        return has_zero

    def counts(self) -> Iterator[int]:
        """How many numbers are marked, 0 included, as a sum in parts."""
        for start in range(0, len(self._flags), _COUNTED_AT_ONCE):
            yield self._flags.count(1, start, start + _COUNTED_AT_ONCE)

    def gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The runs ``(first, n)`` of unmarked numbers from ``start`` to ``stop``."""
        flags = self._flags
        pos = flags.find(0, start, stop)
        while pos >= 0:
            end = flags.find(1, pos, stop)
            if end < 0:
                end = stop
            yield pos, end - pos
            pos = flags.find(0, end, stop)


class Marks:
    """A set of numbers in a window.

    Attributes:
        first_page, stop_page: the window; numbers on other pages are ignored.
    """

    def __init__(self, first_page: int = 0, max_pages: int = MAX_PAGES) -> None:
        self.first_page = first_page
        self.stop_page = _NO_END
        self._pages: dict[int, int] = {}
        self._limit = max(2, max_pages)

    @property
    def is_whole(self) -> bool:
        """Whether the window reaches to the end."""
        return self.stop_page == _NO_END

    def mark_run(self, first: int, n: int) -> list[int]:
        """Mark ``n`` numbers from ``first`` on; those that were marked already are answered."""
        doubles: list[int] = []
        while n > 0:
            page, start = first >> _PAGE_BITS, first & _MASK
            step = min(n, _PAGE - start)
            if self.first_page <= page < self.stop_page:
                mask = ((1 << step) - 1) << start
                seen = self._pages.get(page, 0)
                if seen & mask:
                    doubles += [first - start + i for i in _bits(seen & mask)]
                if seen or self._make_room(page):
                    self._pages[page] = seen | mask
            first += step
            n -= step
        return doubles

    def mark_each(self, numbers: Sequence[int]) -> list[int]:
        """Mark each number but 0; answers the indices of those that were marked."""
        doubles = []
        pages = self._pages
        first_page, stop_page = self.first_page, self.stop_page
        for i, number in enumerate(numbers):
            page = number >> _PAGE_BITS
            if first_page <= page < stop_page and number:
                bit = _BIT[number & _MASK]
                seen = pages.get(page, 0)
                if seen & bit:
                    doubles.append(i)
                elif seen or self._make_room(page):
                    pages[page] = seen | bit
                else:
                    stop_page = self.stop_page
        return doubles

    def gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The runs ``(first, n)`` of unmarked numbers from ``start`` to ``stop``, in the window.

        Now and then ``n`` is 0, so that the caller can give the loop a turn.
        """
        pos = max(start, self.first_page << _PAGE_BITS)
        stop = min(stop, self.stop_page << _PAGE_BITS)
        for i, page in enumerate(sorted(self._pages)):
            base = page << _PAGE_BITS
            for first, end in _runs(self._pages[page]):
                if base + first > pos:
                    yield pos, min(base + first, stop) - pos
                pos = max(pos, base + end)
                if pos >= stop:
                    return
            if i % _PAGES_AT_ONCE == 0:
                yield pos, 0
        if stop > pos:
            yield pos, stop - pos

    def _make_room(self, page: int) -> bool:
        """Whether a new page may be added; shrinks the window if there are too many."""
        if len(self._pages) >= self._limit:
            numbers = sorted(self._pages)
            self.stop_page = numbers[len(numbers) // 2]
            for number in numbers[len(numbers) // 2 :]:
                del self._pages[number]
        return page < self.stop_page


def marks_for(limit: int, max_pages: int) -> Iterator[Marks | Flags]:
    """Empty marks for the numbers below ``limit``: once, or for one window after another."""
    return iter([Flags(limit)]) if limit <= max_pages * _PAGE_COST else windows(max_pages)


def windows(max_pages: int) -> Iterator[Marks]:
    """Empty marks for one pass after another, until a pass has had the rest in its window."""
    marks = Marks(0, max_pages)
    while True:
        yield marks
        if marks.is_whole:
            return
        marks = Marks(marks.stop_page, max_pages)


def _bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _runs(mask: int) -> Iterator[tuple[int, int]]:
    """The runs ``(first, end)`` of set bits."""
    if mask == _FULL:
        yield 0, _PAGE
        return
    at = 0
    while mask:
        zeroes = (mask & -mask).bit_length() - 1
        mask >>= zeroes
        ones = (~mask & (mask + 1)).bit_length() - 1
        yield at + zeroes, at + zeroes + ones
        mask >>= ones
        at += zeroes + ones
