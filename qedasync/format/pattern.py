"""What a run of clusters looks like in an L2 table: found out at the speed of memory."""

from __future__ import annotations

from array import array
from functools import lru_cache

from qedasync.format.geometry import ENTRY_BYTES
from qedasync.format.table import pack_entries

__all__ = ["RunPattern"]


@lru_cache(maxsize=4)
def _first_block(cluster_bits: int, block_bits: int) -> bytes:
    """The entries of the clusters from 0 to ``1 << block_bits``, as on disk."""
    return pack_entries(array("Q", range(0, 1 << (cluster_bits + block_bits), 1 << cluster_bits)))


class RunPattern:
    """Knows what a run of clusters looks like in a table.

    The entries of an aligned block of clusters differ from those of another in their high bytes
    only, so a block is made from the one before by setting a byte or two in all of its entries.
    """

    def __init__(self, cluster_bits: int) -> None:
        self._cluster_bits = cluster_bits
        self._block_bits = 9 + -(cluster_bits + 9) % 8  # a block ends between two bytes
        self._block: bytearray | None = None
        self._number = 0

    def is_run(self, raw: bytes | bytearray | memoryview, first: int) -> bool:
        """Whether ``raw`` is the entries of clusters that follow each other from ``first`` on."""
        view, n_entries = memoryview(raw), 1 << self._block_bits
        cluster = first >> self._cluster_bits
        at = 0
        while at < len(view):
            block = self._block_of(cluster >> self._block_bits)
            inside = cluster & (n_entries - 1)
            n = min(n_entries - inside, (len(view) - at) // ENTRY_BYTES)
            part = view[at : at + n * ENTRY_BYTES]
            # A bytearray on the left compares as fast as memory does, a memoryview does not.
            if block[inside * ENTRY_BYTES : (inside + n) * ENTRY_BYTES] != part:
                return False
            cluster += n
            at += n * ENTRY_BYTES
        return True

    def _block_of(self, number: int) -> bytearray:
        if self._block is None:
            self._block = bytearray(_first_block(self._cluster_bits, self._block_bits))
        byte = (self._cluster_bits + self._block_bits) // 8
        changed = number ^ self._number
        high = number
        while changed:
            if changed & 0xFF:
                self._block[byte::ENTRY_BYTES] = bytes((high & 0xFF,)) * (1 << self._block_bits)
            changed >>= 8
            high >>= 8
            byte += 1
        self._number = number
        return self._block
