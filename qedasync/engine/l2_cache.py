"""Slices of L2 tables in memory, under a byte budget.

A slice is 512 entries, 4 KiB on disk (QEMU caches whole tables, 256 KiB each by default, and
reloads as much on every miss). The cache is write-through: what is here equals what is on disk, and
any slice may go at any time.

Two generations stand in for a recency list, so that a hit on the hot path costs one dictionary
look-up and nothing else: hits are served from ``young``; a slice found in the old generation moves
back to ``young``; when ``young`` is half the budget it becomes the old generation and what was old
is forgotten.

``young`` keeps its identity for the image's life, and holds only slices whose every entry is valid:
whoever reads it need not look at an entry twice. The others wait in ``suspect`` and are served to
:func:`qedasync.format.cluster.lookup`, which validates what it uses.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping

from qedasync.format.geometry import SLICE_BYTES

__all__ = ["L2Cache"]

_SLICE_COST = SLICE_BYTES + 512  # the array, which keeps room to grow, and the dictionary around it
_SUSPECT_LIMIT = 16


class L2Cache(Mapping[int, "array[int]"]):
    """The slices at hand, by slice number.

    Args:
        budget: bytes; at least four slices are kept whatever it says.
    """

    def __init__(self, budget: int) -> None:
        self.young: dict[int, array[int]] = {}
        self.suspect: dict[int, array[int]] = {}
        self._old: dict[int, array[int]] = {}
        self._limit = max(2, budget // _SLICE_COST // 2)

    def get(self, number: int, default: object = None) -> array[int] | None:  # type: ignore[override]
        """The slice, or None; one from the old generation becomes young."""
        entries = self.young.get(number)
        if entries is not None:
            return entries
        entries = self._old.pop(number, None)
        if entries is not None:
            self._add_young(number, entries)
            return entries
        return self.suspect.get(number)

    def put(self, number: int, entries: array[int], *, sound: bool) -> None:
        """Keep a slice as it is on disk now.

        Args:
            sound: whether every entry is 0, 1 or a valid data cluster.
        """
        self.discard(number)
        if sound:
            self._add_young(number, entries)
            return
        if len(self.suspect) >= _SUSPECT_LIMIT:
            del self.suspect[next(iter(self.suspect))]
        self.suspect[number] = entries

    def discard(self, number: int) -> None:
        """Forget a slice, if it is here."""
        self.young.pop(number, None)
        self._old.pop(number, None)
        self.suspect.pop(number, None)

    def clear(self) -> None:
        """Forget everything."""
        self.young.clear()
        self._old.clear()
        self.suspect.clear()

    def _add_young(self, number: int, entries: array[int]) -> None:
        if len(self.young) >= self._limit:
            self._old = self.young.copy()
            self.young.clear()
        self.young[number] = entries

    def __getitem__(self, number: int) -> array[int]:
        entries = self.get(number)
        if entries is None:
            raise KeyError(number)
        return entries

    def __iter__(self) -> Iterator[int]:
        yield from self.young
        yield from self._old
        yield from self.suspect

    def __len__(self) -> int:
        return len(self.young) + len(self._old) + len(self.suspect)
