"""What an image has done since it was opened."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stats"]


@dataclass(slots=True)
class Stats:
    """Counters, each since the image was opened. Bytes are guest bytes.

    Attributes:
        inline_reads: reads that finished inside the caller, without a thread or a lock.
        reads, read_bytes: all other reads.
        writes, write_bytes: writes of data.
        zero_writes: calls of ``write_zeroes`` and ``discard``.
        flushes: flushes asked for by the caller.
        groups: allocating groups committed.
        grouped_writes: allocating writes in them.
        clusters_allocated: data clusters and L2 clusters handed out.
        l2_loads: slices read from disk.
        pauses: times a reader gave the loop a turn.
    """

    inline_reads: int = 0
    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    write_bytes: int = 0
    zero_writes: int = 0
    flushes: int = 0
    groups: int = 0
    grouped_writes: int = 0
    clusters_allocated: int = 0
    l2_loads: int = 0
    pauses: int = 0
