"""The clusters that a piece of an L2 table names: all at once, one integer of 32-bit lanes.

Enough for an image whose marks are :class:`~qedasync.check.marks.Flags`. What is no cluster offset,
nor 0, is not for here: the 64-bit lanes of :mod:`~qedasync.check.lanes` find out what it is.
"""

from __future__ import annotations

from array import array
from functools import lru_cache

from qedasync.format.geometry import ENTRY_BYTES
from qedasync.format.table import from_disk_order

__all__ = ["to_lanes", "from_lanes", "lanes_in", "count_number_breaks"]

_BYTES = 4
_BITS = 8 * _BYTES
_TOP_BIT = 1 << (_BITS - 1)


@lru_cache(maxsize=16)
def _repeat(value: int, n: int) -> int:
    return int.from_bytes(value.to_bytes(_BYTES, "little") * n, "little")


def to_lanes(numbers: array[int]) -> int:
    """Numbers below 2**31 as lanes, the first one lowest."""
    words = numbers[:]
    from_disk_order(words)
    return int.from_bytes(words.tobytes(), "little")


def from_lanes(lanes: int, n: int) -> array[int]:
    """The ``n`` numbers that the lanes are."""
    numbers = array("i")  # which is faster to go through than "I"
    numbers.frombytes(lanes.to_bytes(_BYTES * n, "little"))
    from_disk_order(numbers)
    return numbers


def lanes_in(raw: memoryview, cluster_bits: int) -> int | None:
    """The numbers of the clusters in entries as on disk; 0 where an entry is 0.

    None if an entry is no multiple of the cluster size, or its number is too large: below 2**25 it
    never is, from 2**31 on always.
    """
    skipped, shift = divmod(cluster_bits, 8)
    n = len(raw) // ENTRY_BYTES
    words = array("I")
    words.frombytes(b"".join((raw[skipped:], bytes(skipped))))
    unused = words[1::2].tobytes()  # an entry's high bytes, and the low ones of the next
    if unused != bytes(len(unused)) or any(raw[:skipped]):
        return None
    lanes = int.from_bytes(words[0::2].tobytes(), "little")
    if lanes & _repeat((1 << shift) - 1 if shift else _TOP_BIT, n):
        return None
    return lanes >> shift


def count_number_breaks(lanes: int, n: int) -> int:
    """How many of ``n`` numbers, at least one and below 2**31 - 1, do not follow the one before."""
    all_breaks = _repeat(_TOP_BIT, n - 1)
    differs = (lanes >> _BITS) ^ (lanes + _repeat(1, n - 1))  # and the last number, to be ignored
    breaks = (differs + _repeat(_TOP_BIT - 1, n - 1)) & all_breaks
    return n - 1 if breaks == all_breaks else breaks.bit_count()  # comparing is a lot cheaper
