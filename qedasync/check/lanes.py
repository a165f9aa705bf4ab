"""Judges the entries of a slice at once: one integer, whose 64-bit lanes are the entries.

A hostile table is wrong in millions of places, so nothing here takes a step for each of them. An
answer is an integer as well: the top bit of each lane that is wrong, and nothing else.
"""

from __future__ import annotations

from qedasync.format.geometry import ENTRY_BYTES, SLICE_BYTES, SLICE_ENTRIES, Geometry

__all__ = ["Judge", "indices_of", "without", "as_lanes", "as_bytes", "is_full", "count_breaks"]

_TOP_BIT = 1 << 63


def _repeat(value: int) -> int:
    return int.from_bytes(value.to_bytes(ENTRY_BYTES, "little") * SLICE_ENTRIES, "little")


def _at_least(limit: int) -> int:
    """What to add to lanes below 2**63 so that those >= ``limit`` get their top bit set."""
    return _repeat(_TOP_BIT - min(max(limit, 0), _TOP_BIT))


_ONE = _repeat(1)
_TOP = _repeat(_TOP_BIT)
_ALL_BUT_TOP = _repeat(_TOP_BIT - 1)
_NOT_ZERO = _at_least(1)
_NOT_ZERO_NOR_ONE = _at_least(2)
_ALL_BUT_THE_FIRST = (1 << (64 * (SLICE_ENTRIES - 1))) - 1


def as_lanes(raw: bytes | memoryview) -> int:
    """A slice as it is on disk, as lanes."""
    return int.from_bytes(raw, "little")


def as_bytes(lanes: int) -> bytes:
    """Lanes as they are on disk."""
    return lanes.to_bytes(SLICE_BYTES, "little")


def indices_of(wrong: int) -> list[int]:
    """The numbers of the lanes whose top bit is set."""
    return [i for i, byte in enumerate(as_bytes(wrong)[ENTRY_BYTES - 1 :: ENTRY_BYTES]) if byte]


def without(lanes: int, wrong: int) -> int:
    """Lanes with 0 in place of those that are wrong."""
    return lanes ^ (lanes & ((wrong << 1) - (wrong >> 63)))


def is_full(lanes: int) -> bool:
    """Whether no lane is 0 or 1."""
    return ((lanes & _ALL_BUT_TOP) + _NOT_ZERO_NOR_ONE | lanes) & _TOP == _TOP


def count_breaks(lanes: int, step: int) -> int:
    """How many lanes are not the one before and ``step``."""
    top = lanes & _TOP
    expected = ((lanes ^ top) + _ONE * step) ^ top
    differs = ((lanes >> 64) ^ expected) & _ALL_BUT_THE_FIRST
    return (((differs & _ALL_BUT_TOP) + _NOT_ZERO | differs) & _TOP).bit_count()


class Judge:
    """Knows where something may lie: L2 tables, which L1 names, or data, which L2 tables name.

    The same as :meth:`Geometry.check_table_offset` and :meth:`Geometry.check_cluster_offset`, in
    some 8 µs for a slice.
    """

    def __init__(self, geometry: Geometry, end_of_file: int, *, tables: bool) -> None:
        length = geometry.table_bytes if tables else geometry.cluster_size
        self._tables = tables
        self._inside_cluster = _repeat(geometry.cluster_mask)
        self._first = _at_least(geometry.first_cluster_offset)
        self._stop = _at_least(end_of_file - length + 1)
        self._on_l1 = _at_least(geometry.l1_table_offset - length + 1)
        self._behind_l1 = _at_least(geometry.l1_end)

    def wrong(self, lanes: int) -> int:
        """The entries that are no valid offset, nor 0, nor 1 in an L2 table."""
        too_high = lanes & _TOP
        lanes ^= too_high
        wrong = (
            ((lanes & self._inside_cluster) + _NOT_ZERO)
            | (lanes + self._stop)
            | (((lanes + self._first) & _TOP) ^ _TOP)
            | ((lanes + self._on_l1) & (((lanes + self._behind_l1) & _TOP) ^ _TOP))
        ) & (lanes + _NOT_ZERO)
        if not self._tables:
            wrong &= (lanes ^ _ONE) + _NOT_ZERO
        return (wrong | too_high) & _TOP
