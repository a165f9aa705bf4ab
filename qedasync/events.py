"""Names of what happens to an image file, shared by logs, fault injection, crash replay and
counters.

Where QEMU's blkdebug has a name for the same step, it is that name (qemu 7.2
docs/devel/blkdebug.txt); the rest are ours. An event says *why* bytes move; the storage never acts
on it.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Event"]


class Event(StrEnum):
    """Why the engine touches the storage."""

    READ_AIO = "read_aio"  # guest data out of a mapped cluster
    READ_BACKING_AIO = "read_backing_aio"  # guest data out of the backing file
    WRITE_AIO = "write_aio"  # guest data, in place or into a new cluster
    PWRITEV_ZERO = "pwritev_zero"  # zeroes over a mapped cluster
    COW_READ = "cow_read"  # old content of a cluster about to be copied
    COW_WRITE = "cow_write"  # the untouched parts of a new cluster
    CLUSTER_ALLOC = "cluster_alloc"  # the file grows for new clusters
    L1_LOAD = "l1_load"
    L1_UPDATE = "l1_update"
    L2_LOAD = "l2_load"
    L2_UPDATE = "l2_update"  # entries of an existing L2 table
    L2_ALLOC_WRITE = "l2_alloc_write"  # a new L2 table, whole
    HEADER_LOAD = "header_load"
    HEADER_UPDATE = "header_update"
    FLUSH_TO_DISK = "flush_to_disk"
    TRUNCATE = "truncate"  # the file is cut
    CREATE = "create"  # an empty image is laid down
    CHECK_LOAD = "check_load"  # metadata read by a check
    CHECK_COPY = "check_copy"  # a doubly referenced cluster is copied by a repair
