"""Where things are in an image: the arithmetic of clusters, tables and slices.

A guest position splits, from its low bits up, into an offset in a cluster, an index into an L2
table and an index into L1. An L2 table is handled in *slices* of 512 entries (4 KiB on disk),
numbered through the whole image, so that a cache never has to hold a table of many MiB.

Owns nothing that changes: the file's length is passed in (``end_of_file``, a multiple of the
cluster size; see :func:`qedasync.format.header.usable_file_size`). Integers are unbounded, so a
hostile offset near 2**64 cannot wrap into a valid one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from qedasync.format.header import Header

__all__ = ["Geometry", "GuestPos", "FileOffset", "SLICE_ENTRIES", "SLICE_BYTES", "ENTRY_BYTES"]

GuestPos = NewType("GuestPos", int)
"""A byte position on the disk the guest sees."""

FileOffset = NewType("FileOffset", int)
"""A byte position in the image file."""

ENTRY_BYTES = 8
SLICE_ENTRIES = 512
"""Entries of one slice of an L2 table. The smallest table there is has exactly as many."""
SLICE_BYTES = SLICE_ENTRIES * ENTRY_BYTES

_SLICE_BITS = SLICE_ENTRIES.bit_length() - 1


@dataclass(frozen=True, slots=True)
class Geometry:
    """The four numbers that place everything in an image, and what follows from them.

    The numbers are believed: :func:`qedasync.format.header.validate_header` checks them.

    Attributes:
        cluster_size: bytes, a power of two.
        table_size: clusters per L1 and per L2 table, a power of two.
        header_size: clusters before the first regular one.
        l1_table_offset: file offset of L1.
        cluster_bits: log2 of ``cluster_size``.
        cluster_mask: ``cluster_size - 1``.
        table_entries: entries per table.
        table_bytes: bytes per table.
        l2_bits: log2 of ``table_entries``.
        l1_shift: ``pos >> l1_shift`` is the L1 index; ``1 << l1_shift`` bytes hang on one L2 table.
        slice_shift: ``pos >> slice_shift`` is the slice number; a slice maps 512 clusters.
        slices_per_table: slices in one L2 table.
        first_cluster_offset: file offset of the first regular cluster.
        l1_end: file offset just past L1.
    """

    cluster_size: int
    table_size: int
    header_size: int
    l1_table_offset: int
    cluster_bits: int = field(init=False, repr=False, compare=False)
    cluster_mask: int = field(init=False, repr=False, compare=False)
    table_entries: int = field(init=False, repr=False, compare=False)
    table_bytes: int = field(init=False, repr=False, compare=False)
    l2_bits: int = field(init=False, repr=False, compare=False)
    l1_shift: int = field(init=False, repr=False, compare=False)
    slice_shift: int = field(init=False, repr=False, compare=False)
    slices_per_table: int = field(init=False, repr=False, compare=False)
    first_cluster_offset: int = field(init=False, repr=False, compare=False)
    l1_end: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        cluster_bits = self.cluster_size.bit_length() - 1
        table_bytes = self.table_size * self.cluster_size
        table_entries = table_bytes // ENTRY_BYTES
        l2_bits = table_entries.bit_length() - 1
        derived = {
            "cluster_bits": cluster_bits,
            "cluster_mask": self.cluster_size - 1,
            "table_entries": table_entries,
            "table_bytes": table_bytes,
            "l2_bits": l2_bits,
            "l1_shift": cluster_bits + l2_bits,
            "slice_shift": cluster_bits + _SLICE_BITS,
            "slices_per_table": table_entries // SLICE_ENTRIES,
            "first_cluster_offset": self.header_size * self.cluster_size,
            "l1_end": self.l1_table_offset + table_bytes,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, header: Header) -> Geometry:
        """The geometry a header states, unchecked."""
        return cls(
            cluster_size=header.cluster_size,
            table_size=header.table_size,
            header_size=header.header_size,
            l1_table_offset=header.l1_table_offset,
        )

    @property
    def max_image_size(self) -> int:
        """Bytes two levels of tables can map, or 0 if that is 2**64 or more.

        QEMU computes the product in 64 bits. Cluster and table sizes are powers of two, so one that
        does not fit wraps to exactly 0: such an image can only be empty. We keep that, for an image
        QEMU refuses helps nobody.
        """
        size = self.table_entries * self.table_entries * self.cluster_size
        return size if size < 1 << 64 else 0

    def start_of_cluster(self, pos: int) -> int:
        """``pos`` rounded down to a cluster."""
        return pos & ~self.cluster_mask

    def offset_into_cluster(self, pos: int) -> int:
        """How far into its cluster ``pos`` is."""
        return pos & self.cluster_mask

    def round_up(self, pos: int) -> int:
        """``pos`` rounded up to a cluster."""
        return (pos + self.cluster_mask) & ~self.cluster_mask

    def bytes_to_clusters(self, n: int) -> int:
        """Clusters needed to hold ``n`` bytes.

        Differs from QEMU: qed_bytes_to_clusters (qed.h) divides by ``cluster_size - 1``, which from
        that many clusters on counts one too many and overwrites a neighbour's table entry.
        """
        return (n + self.cluster_mask) >> self.cluster_bits

    def l1_index(self, pos: int) -> int:
        """The L1 entry that leads to ``pos``."""
        return pos >> self.l1_shift

    def l2_index(self, pos: int) -> int:
        """The entry for ``pos`` in its (whole) L2 table."""
        return (pos >> self.cluster_bits) & (self.table_entries - 1)

    def slice_of(self, pos: int) -> int:
        """The number of the slice that maps ``pos``, counted through the whole image."""
        return pos >> self.slice_shift

    def end_of_slice(self, pos: int) -> int:
        """Where the slice begins that comes after the one of ``pos``."""
        return ((pos >> self.slice_shift) + 1) << self.slice_shift

    def slice_file_offset(self, table_offset: int, pos: int) -> FileOffset:
        """Where in the file the slice for ``pos`` lies, its L2 table being at ``table_offset``."""
        slice_in_table = (pos >> self.slice_shift) & (self.slices_per_table - 1)
        return FileOffset(table_offset + slice_in_table * SLICE_BYTES)

    def l1_entries_used(self, image_size: int) -> int:
        """L1 entries needed to map ``image_size`` bytes."""
        return -(-image_size >> self.l1_shift)

    def check_cluster_offset(self, offset: int, end_of_file: int) -> bool:
        """Whether a data cluster may lie at ``offset``: aligned, in the file, on no metadata.

        Differs from QEMU: qed_check_cluster_offset (qed.h) allows data on top of L1, where the next
        guest write destroys the image. Overlap with L2 tables takes a full check to find.
        """
        return (
            not offset & self.cluster_mask
            and self.first_cluster_offset <= offset < end_of_file
            and not self.l1_table_offset <= offset < self.l1_end
        )

    def check_table_offset(self, offset: int, end_of_file: int) -> bool:
        """Whether an L2 table may lie at ``offset``: all its clusters are valid, none is L1's.

        Differs from QEMU: qed_check_table_offset (qed.h) takes a table of one cluster for one that
        wraps around, so QEMU opens no image with ``table_size`` 1.
        """
        end = offset + self.table_bytes
        return (
            not offset & self.cluster_mask
            and self.first_cluster_offset <= offset
            and end <= end_of_file
            and (end <= self.l1_table_offset or offset >= self.l1_end)
        )
