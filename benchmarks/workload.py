"""A stream of equal requests, the same for qedasync and for its rivals.

Request number ``i`` goes to ``(start + i * step) % size``, as qemu-img's ``-o``, ``-S`` and the
image's size define it. A step that is odd in units of the block visits every block before it comes
back, which is what stands for "random" here: all sides then make the same requests in the same
order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Self

__all__ = ["Workload"]


@dataclass(frozen=True, slots=True)
class Workload:
    """What to do with an image.

    Attributes:
        count: requests.
        block: bytes of each.
        step: bytes from one request's start to the next's.
        size: guest bytes the stream wraps at; a multiple of ``block``.
        start: where it begins.
        write: writes, else reads.
        depth: requests in flight.
        cache: cache mode, in qedasync's words and qemu-img's.
        flush_every: a flush after so many requests, for which the next ones wait; 0 for none.
        zero: what is written are zeroes, and no data is handed over.
        read_percent: so many of a hundred writes are reads.
        mapped: our file is mapped.
        view: reads show the page cache instead of copying it; rivals copy, as they have no such.
    """

    count: int
    block: int
    step: int
    size: int
    start: int = 0
    write: bool = False
    depth: int = 64
    cache: str = "writeback"
    flush_every: int = 0
    zero: bool = False
    read_percent: int = 0
    mapped: bool = False
    view: bool = False

    @property
    def sequential(self) -> bool:
        return self.step == self.block

    @property
    def direct(self) -> bool:
        """Whether it goes past the page cache."""
        return self.cache == "none"

    def positions(self) -> list[int]:
        """Where each request goes; made before the clock starts."""
        return [(self.start + i * self.step) % self.size for i in range(self.count)]

    def reads(self, number: int) -> bool:
        """Whether request ``number`` reads."""
        return not self.write or number * self.read_percent % 100 < self.read_percent

    def shared(self, parts: int) -> Self:
        """One of so many equal parts of it, to be made at once."""
        return replace(self, count=self.count // parts, depth=max(1, self.depth // parts))

    def shortened(self, divisor: int) -> Self:
        """The same with fewer requests, but enough to fill the queue a few times."""
        return replace(self, count=min(self.count, max(self.count // divisor, 4 * self.depth)))

    def as_dict(self) -> dict[str, int | str | bool]:
        return asdict(self)
