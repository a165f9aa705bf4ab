"""Finding zeroes in data that have been read."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["data_runs", "is_zero", "piece_size", "runs"]

_PAGE = 4096
_MAX_PIECE = 16 << 20
_WORDS = _PAGE // 8
_ZERO_PAGE = bytes(_PAGE)


def piece_size(usual: int, least: int) -> int:
    """Bytes to look at at once, a power of two as ``usual`` is, to find ``least`` zeroes."""
    return max(usual, min(1 << (least - 1).bit_length() if least else 0, _MAX_PIECE))


def is_zero(data: bytearray) -> bool:
    """Whether there is nothing but zeroes."""
    return not data or (not data[0] and data.count(0) == len(data))


def runs(data: bytearray, length: int, least: int) -> Iterator[tuple[int, int, bool]]:
    """(start, length, zero) of the first ``length`` bytes: runs of zeroes of at least ``least``
    bytes, and the data between them; both begin at multiples of 4096, but for the end.

    Zeroes at either end may go on in the piece next to this one, so they need not be as many.

    Args:
        least: a multiple of 4096, or 0 to call everything data.
    """
    if not length:
        return
    zero_pages = _zero_pages(data, length) if least else []
    done = 0
    for start, end in _spans(zero_pages):
        stop = min(end * _PAGE, length)
        if stop - start * _PAGE < least and start and stop < length:
            continue
        if start * _PAGE > done:
            yield done, start * _PAGE - done, False
        yield start * _PAGE, stop - start * _PAGE, True
        done = stop
    if done < length:
        yield done, length - done, False


def data_runs(data: bytearray, length: int, least: int, unit: int) -> list[tuple[int, int]]:
    """(start, length) of what is left of :func:`runs` without the zeroes.

    Args:
        least: as there, not 0.
        unit: only whole units of zeroes are left out; a multiple of 4096.
    """
    found: list[tuple[int, int]] = []
    done = 0
    for start, size, zero in runs(data, length, least):
        if zero:
            end = start + size
            start += -start % unit
            end = end if end == length else end - end % unit
            if start < end:
                if start > done:
                    found.append((done, start - done))
                done = end
    if done < length:
        found.append((done, length - done))
    return found


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
