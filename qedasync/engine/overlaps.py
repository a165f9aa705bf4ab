"""Which clusters the L2 tables occupy: found in one pass over L1, in bounded memory.

A sound image has each table once and no data on it. In a hostile one both are easy to arrange, and
a write would then change another part of the disk, or the mapping itself.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable

from qedasync.format.geometry import SLICE_ENTRIES, Geometry

__all__ = ["TableMap"]

_MAX_CLUSTERS = 1 << 18
"""Some 24 MiB; twice what 64 TiB in 64 KiB clusters take."""


class TableMap:
    """The clusters of the L2 tables that an L1 names.

    Args:
        end_of_file: bytes in which tables may lie; other entries are no tables.

    Attributes:
        is_whole: false if there are too many to remember. Then nothing is known to be covered, and
            only tables named twice are known to be shared: a check finds the rest.
    """

    def __init__(
        self,
        geometry: Geometry,
        l1: array[int],
        end_of_file: int,
        max_clusters: int = _MAX_CLUSTERS,
    ) -> None:
        self.is_whole = True
        self._geometry = geometry
        self._l1 = l1
        self._clusters: set[int] = set()
        self._shared: set[int] = set()  # every cluster of a table that came upon another one
        for first in range(0, len(l1), SLICE_ENTRIES):
            named = Counter(l1[first : first + SLICE_ENTRIES])
            del named[0]
            for offset, n in named.items():
                if geometry.check_table_offset(offset, end_of_file):
                    self._add(offset, n)
            if len(self._clusters) > max_clusters:
                self.is_whole = False
                self._clusters.clear()
                self._shared.clear()
                break

    def add(self, offset: int) -> None:
        """A table has been made."""
        if self.is_whole:
            self._add(offset, 1)

    def covers(self, offsets: Iterable[int]) -> bool:
        """Whether one of the clusters at ``offsets`` is a table's."""
        return not self._clusters.isdisjoint(offsets)

    def is_shared(self, offset: int) -> bool:
        """Whether another L1 entry's table has a cluster of the table at ``offset``."""
        if self.is_whole:
            return not self._shared.isdisjoint(self._clusters_of(offset))
        return self._l1.count(offset) > 1

    def _add(self, offset: int, n: int) -> None:
        clusters = self._clusters_of(offset)
        if n > 1 or self.covers(clusters):
            self._shared.update(clusters)
        self._clusters.update(clusters)

    def _clusters_of(self, offset: int) -> range:
        geometry = self._geometry
        return range(offset, offset + geometry.table_bytes, geometry.cluster_size)
