"""What the user of an image was promised: each call, with its begin and end as the recorder counts.

A journal drives an image and remembers; :meth:`Journal.promise` then says what may be read after a
power loss at a given cut. The rule, for each byte: a write counts as *safe* once a flush that began
after the write returned has itself returned. A safe write replaces everything that had ended before
it began. All other writes that had begun may show, or not, and so may what was there at the start
while nothing safe covers it.

Bytes are judged in *atoms*: ranges that no call's end and no 512-byte border cuts. All of an atom
is one call's, never a mixture.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from qedasync.errors import QEDError
from qedasync.image import Image
from qedasync.storage.faults import SECTOR
from qedasync.storage.recorder import RecorderStorage

__all__ = ["Journal", "Promise", "Span", "Change"]

NEVER = 1 << 62
SMALL = 1 << 18


@dataclass(slots=True, eq=False)
class Span:
    """A call: times on the recorder's clock; ``end`` stays :data:`NEVER` if it did not succeed."""

    begin: int
    end: int = NEVER


@dataclass(slots=True, eq=False)
class Change(Span):
    """A call that changes guest bytes.

    Attributes:
        pos: first guest byte.
        data: what is there afterwards.
        safe_at_end: whether it is durable on return (writethrough).
        replaces: whether it has to be there once it is safe; a discard may have done nothing.
    """

    pos: int = 0
    data: bytes = b""
    safe_at_end: bool = False
    replaces: bool = True

    @property
    def stop(self) -> int:
        return self.pos + len(self.data)

    def is_safe(self, cut: int, flushed: int) -> bool:
        """Whether it must have survived a power loss at ``cut``."""
        return self.replaces and (self.end < flushed or (self.safe_at_end and self.end < cut))


@dataclass(slots=True, frozen=True)
class Promise:
    """What may be read after a power loss.

    Attributes:
        sizes: of the image.
        sure: (pos, bytes): must be exactly that.
        loose: (pos, length, any of these).
        key: equal keys of one journal mean equal promises.
    """

    sizes: frozenset[int]
    sure: tuple[tuple[int, bytes], ...]
    loose: tuple[tuple[int, int, frozenset[bytes]], ...]
    key: tuple[object, ...]

    def broken(self, start: int, content: bytes | bytearray) -> str | None:
        """Why ``content``, the guest bytes from ``start`` on, breaks the promise; None if not."""
        stop = start + len(content)
        for pos, want in self.sure:
            low, high = max(pos, start), min(pos + len(want), stop)
            if low < high and content[low - start : high - start] != want[low - pos : high - pos]:
                first = next(i for i in range(low, high) if content[i - start] != want[i - pos])
                return f"byte {first} (cluster {first >> 12}) lost what was promised for it"
        for pos, length, allowed in self.loose:
            if start <= pos and pos + length <= stop:
                got = bytes(content[pos - start : pos - start + length])
                if got not in allowed:
                    return f"bytes {pos}+{length} are none of the {len(allowed)} allowed values"
        return None


@dataclass(eq=False)
class Journal:
    """Drives an image over a recorder, and remembers.

    Attributes:
        recorder: below the image; its clock is the journal's.
        initial: the guest bytes at the start; zeroes past its end.
        size: the image's size at the start.
        watch: guest ranges [start, stop) that may hold data, of an image that is not small.
        flushing: client flushes under way now.
    """

    recorder: RecorderStorage
    initial: bytes
    size: int
    write_through: bool = False
    watch: Sequence[tuple[int, int]] = ()
    changes: list[Change] = field(default_factory=list)
    flushes: list[Span] = field(default_factory=list)
    resizes: list[tuple[Span, int]] = field(default_factory=list)
    created: Span | None = None
    flushing: int = 0
    _ranges: list[tuple[int, int]] = field(default_factory=list)
    _atoms: list[int] = field(default_factory=list)
    _promises: dict[tuple[object, ...], Promise] = field(default_factory=dict)

    # ------------------------------------------------------------------- calls

    async def write(self, disk: Image, rng: Random, pos: int, length: int) -> None:
        """Write random bytes."""
        change = self._begin(pos, rng.randbytes(length))
        await disk.pwrite(change.data, pos)
        change.end = self._now()

    async def try_write(self, disk: Image, rng: Random, pos: int, length: int) -> None:
        """Write random bytes; an error is fine, and promises nothing."""
        try:
            await self.write(disk, rng, pos, length)
        except QEDError:
            pass

    async def zero(self, disk: Image, pos: int, length: int) -> None:
        """Write zeroes."""
        change = self._begin(pos, bytes(length))
        await disk.write_zeroes(length, pos)
        change.end = self._now()

    async def discard(self, disk: Image, pos: int, length: int) -> None:
        """Discard: zeroes from now on, or what was there."""
        change = self._begin(pos, bytes(length))
        change.replaces = False
        await disk.discard(length, pos)
        change.end = self._now()

    async def flush(self, disk: Image) -> None:
        """Flush; what was returned before is safe afterwards."""
        span = Span(self._now())
        self.flushes.append(span)
        self.flushing += 1
        try:
            await disk.flush()
        finally:
            self.flushing -= 1
        span.end = self._now()

    async def close(self, disk: Image) -> None:
        """Close, which flushes."""
        span = Span(self._now())
        self.flushes.append(span)
        await disk.close()
        span.end = self._now()

    async def grow(self, disk: Image, size: int) -> None:
        """Grow; durable on return."""
        span = Span(self._now())
        self.resizes.append((span, size))
        await disk.truncate(size)
        span.end = self._now()

    def _begin(self, pos: int, data: bytes) -> Change:
        change = Change(self._now(), pos=pos, data=data, safe_at_end=self.write_through)
        self.changes.append(change)
        return change

    def _now(self) -> int:
        return self.recorder.mark().begin

    # ---------------------------------------------------------------- promises

    @property
    def biggest(self) -> int:
        """The largest size the image ever had."""
        return max([self.size, *(size for _, size in self.resizes)])

    def touched(self) -> list[tuple[int, int]]:
        """The guest ranges [start, stop) that calls touched, whole 4 KiB, with one more around.

        All of a small image. To be asked once the journal is complete, as everything below.
        """
        if not self._ranges:
            self._ranges = self._touched()
        return self._ranges

    def _touched(self) -> list[tuple[int, int]]:
        if self.biggest <= SMALL:
            return [(0, self.biggest)]
        grain = 4096
        ranges: list[tuple[int, int]] = []
        edges = [*self.watch, *((change.pos, change.stop) for change in self.changes)]
        edges += [(self.size, self.size), *((size, size) for _, size in self.resizes)]
        for start, stop in sorted(edges):
            start = max(0, start // grain - 1) * grain
            stop = min(self.biggest, (-(-stop // grain) + 1) * grain)
            if ranges and start <= ranges[-1][1]:
                start, last = ranges.pop()
                stop = max(stop, last)
            ranges.append((start, stop))
        return ranges

    def promise(self, cut: int) -> Promise:
        """What may be read after a power loss at ``cut``."""
        flushed = max((f.begin for f in self.flushes if f.end < cut), default=-1)
        begun = [change for change in self.changes if change.begin < cut]
        safe = [change for change in begun if change.is_safe(cut, flushed)]
        sizes = self._sizes(cut)
        key = (len(begun), len(safe), flushed, sizes)
        if key not in self._promises:
            self._promises[key] = self._judge(begun, set(safe), sizes, key)
        return self._promises[key]

    def _sizes(self, cut: int) -> frozenset[int]:
        sizes = {self.size}
        for span, size in self.resizes:
            if span.end < cut:
                sizes = {size}
            elif span.begin < cut:
                sizes.add(size)
        return frozenset(sizes)

    def _judge(
        self,
        begun: list[Change],
        safe: set[Change],
        sizes: frozenset[int],
        key: tuple[object, ...],
    ) -> Promise:
        values = self._allowed(begun, safe)
        sure: list[tuple[int, bytes]] = []
        loose = []
        for pos, length, allowed in values:
            if len(allowed) > 1:
                loose.append((pos, length, allowed))
                continue
            (only,) = allowed
            if sure and sure[-1][0] + len(sure[-1][1]) == pos:
                pos, before = sure.pop()
                only = before + only
            sure.append((pos, only))
        return Promise(sizes, tuple(sure), tuple(loose), key)

    def _allowed(
        self, begun: list[Change], safe: set[Change]
    ) -> Iterator[tuple[int, int, frozenset[bytes]]]:
        """For each atom in the touched ranges: position, length, allowed values."""
        borders = self._borders()
        covering: list[list[Change]] = [[] for _ in borders]
        for change in begun:
            first = bisect_left(borders, change.pos)
            for number in range(first, bisect_left(borders, change.stop)):
                covering[number].append(change)
        for start, stop in self.touched():
            for number in range(bisect_left(borders, start), bisect_left(borders, stop)):
                pos, end = borders[number], borders[number + 1]
                changes = covering[number]
                values = {c.data[pos - c.pos : end - c.pos] for c in _showing(changes, safe)}
                if safe.isdisjoint(changes):
                    values.add(self.initial[pos:end].ljust(end - pos, b"\0"))
                yield pos, end - pos, frozenset(values)

    def _borders(self) -> list[int]:
        """Where atoms begin and end, over all touched ranges."""
        if not self._atoms:
            borders = {edge for change in self.changes for edge in (change.pos, change.stop)}
            for start, stop in self.touched():
                borders.update(range(start, stop, SECTOR))
                borders.add(stop)
            self._atoms = sorted(borders)
        return self._atoms


def _showing(changes: Iterable[Change], safe: set[Change]) -> Iterator[Change]:
    """Of the changes over one atom those that nothing safe has replaced."""
    latest = max((change.begin for change in changes if change in safe), default=-1)
    return (change for change in changes if change.end >= latest)
