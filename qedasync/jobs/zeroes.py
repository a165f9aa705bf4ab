"""Finding zeroes in data that have been read."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["is_zero", "runs"]

_PAGE = 4096
_WORDS = _PAGE // 8
_ZERO_PAGE = bytes(_PAGE)


def is_zero(data: bytearray) -> bool:
    """Whether there is nothing but zeroes."""
    return not data or (not data[0] and data.count(0) == len(data))


def runs(data: bytearray, length: int, least: int) -> Iterator[tuple[int, int, bool]]:
    """(start, length, zero) of the first ``length`` bytes: runs of zeroes of at least ``least``
    bytes, and the data between them; both begin at multiples of 4096, but for the end.

    Args:
        least: a multiple of 4096, or 0 to call everything data.
    """
    if not length:
        return
    zero_pages = _zero_pages(data, length) if least else []
    done = 0
    for start, end in _spans(zero_pages):
        stop = min(end * _PAGE, length)
        if stop - start * _PAGE < least and stop < length:
            continue
        if start * _PAGE > done:
            yield done, start * _PAGE - done, False
        yield start * _PAGE, stop - start * _PAGE, True
        done = stop
    if done < length:
        yield done, length - done, False


def _zero_pages(data: bytearray, length: int) -> list[int]:
    """Numbers of the pages of nothing but zeroes, the last one perhaps a short one."""
    whole = length - length % _PAGE
    found: list[int] = []
    if whole:
        # One word of each page tells most of those that are not.
        words = memoryview(data)[:whole].cast("Q")[::_WORDS].tolist()
        found = [
            number
            for number, word in enumerate(words)
            if not word and data[number * _PAGE : (number + 1) * _PAGE] == _ZERO_PAGE
        ]
    if whole < length and not any(data[whole:length]):
        found.append(whole // _PAGE)
    return found


def _spans(pages: list[int]) -> Iterator[tuple[int, int]]:
    """(first, behind the last) of numbers that follow each other."""
    start = previous = -2
    for page in pages:
        if page != previous + 1:
            if start >= 0:
                yield start, previous + 1
            start = page
        previous = page
    if start >= 0:
        yield start, previous + 1
