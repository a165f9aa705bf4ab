"""Where the file ends: the one who hands out clusters.

Clusters are only ever handed out past the end of the file, so they hold zeroes and nobody else has
them. There is no free list; a cluster handed out and never linked is a leak, which a check finds.
"""

from __future__ import annotations

import errno

from qedasync.errors import storage_error
from qedasync.format.geometry import FileOffset, Geometry

__all__ = ["Allocator"]

_MAX_FILE = (1 << 63) - 1  # the host counts in 64 bits with a sign


class Allocator:
    """Owns the end of the file.

    Attributes:
        end_of_file: bytes in use, a multiple of the cluster size; entries must lie below it.
        first_taken: the first cluster handed out, or None. An entry at or past it is one of ours,
            or was past the end of the file when the image was opened.
    """

    def __init__(self, geometry: Geometry, end_of_file: int) -> None:
        self._cluster_bits = geometry.cluster_bits
        self.end_of_file = end_of_file
        self.first_taken: int | None = None

    def take(self, n_clusters: int) -> FileOffset:
        """Hand out a run of clusters; the file has them once something grows it.

        Raises:
            StorageError: no file can be as long as that. The end is where it was.

        Locks: the caller holds the allocating turn.
        """
        offset = self.end_of_file
        length = n_clusters << self._cluster_bits
        if offset + length > _MAX_FILE:
            raise storage_error(errno.EFBIG, offset=offset, length=length)
        if self.first_taken is None:
            self.first_taken = offset
        self.end_of_file = offset + length
        return FileOffset(offset)
