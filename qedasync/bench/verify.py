"""Does the image give back what was written? Stamps of place and generation in every 16 bytes.

Writes to one block never overlap here, so a read must show the last generation that was
acknowledged before it began, or one that was begun before it ended. A block that nobody has written
must not change at all. What a read shows while a write of the same block runs may be a mixture.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from qedasync.errors import QEDError

__all__ = ["Ledger", "VerifyFailed"]

_STAMP = struct.Struct("<QQ")


class VerifyFailed(QEDError):
    """A read gave something that it must not give.

    Attributes:
        offset: the guest byte where the block starts.
        oldest, newest: the generations that would have been right; 0 is the content before the run.
    """

    def __init__(self, offset: int, oldest: int, newest: int, found: str) -> None:
        wanted = f"generation {oldest}" + (f" to {newest}" if newest > oldest else "")
        super().__init__(f"verify failed at offset {offset}: wanted {wanted}, found {found}")
        self.offset = offset
        self.oldest = oldest
        self.newest = newest


class Ledger:
    """What every block of a run must hold.

    Args:
        block_size: bytes of a block, a multiple of 16.

    Attributes:
        checked: reads that were checked and right.
    """

    def __init__(self, block_size: int) -> None:
        self.checked = 0
        self._repeat = block_size // _STAMP.size
        self._begun: dict[int, int] = {}
        self._acknowledged: dict[int, int] = {}
        self._original: dict[int, int] = {}  # checksums of blocks that were read before any write

    def begin_write(self, offset: int) -> bytes | None:
        """The block to write next at ``offset``; None while a write of that block runs."""
        generation = self._begun.get(offset, 0)
        if generation != self._acknowledged.get(offset, 0):
            return None
        self._begun[offset] = generation + 1
        return _STAMP.pack(offset, generation + 1) * self._repeat

    def end_write(self, offset: int) -> None:
        """The write of :meth:`begin_write` has been acknowledged."""
        self._acknowledged[offset] = self._begun[offset]

    def begin_read(self, offset: int) -> int:
        """The oldest generation that a read that begins now may show."""
        return self._acknowledged.get(offset, 0)

    def end_read(self, offset: int, oldest: int, data: bytes | bytearray) -> None:
        """Check what a read got; ``oldest`` is from :meth:`begin_read`.

        Raises:
            VerifyFailed: it may not be.
        """
        newest = self._begun.get(offset, 0)
        if newest == 0:
            self._check_original(offset, data)
        elif data != _STAMP.pack(offset, newest) * self._repeat:
            self._check_mixture(offset, oldest, newest, data)
        self.checked += 1

    def offsets(self) -> Iterator[int]:
        """Every block whose content is known, from front to back."""
        return iter(sorted(self._begun.keys() | self._original.keys()))

    def _check_original(self, offset: int, data: bytes | bytearray) -> None:
        checksum = zlib.crc32(data)
        if self._original.setdefault(offset, checksum) != checksum:
            raise VerifyFailed(offset, 0, 0, "other bytes than before, though nobody wrote any")

    def _check_mixture(
        self, offset: int, oldest: int, newest: int, data: bytes | bytearray
    ) -> None:
        """Allow the generations from ``oldest`` on; with 0 among them any byte can be right."""
        if oldest == 0:
            return
        right = {_STAMP.pack(offset, generation) for generation in range(oldest, newest + 1)}
        for start in range(0, len(data), _STAMP.size):
            stamp = bytes(data[start : start + _STAMP.size])
            if stamp not in right:
                place, generation = _STAMP.unpack(stamp)
                what = f"generation {generation}" if place == offset else stamp.hex()
                raise VerifyFailed(offset, oldest, newest, f"{what} at byte {start} of the block")
