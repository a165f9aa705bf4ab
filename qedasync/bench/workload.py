"""What a benchmark does to an image: which operations, where, how many. In fio's words.

Pure: the whole sequence of operations follows from the workload and its seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain, islice, repeat

from qedasync.errors import RequestError

__all__ = ["Pattern", "Step", "Workload"]

Step = tuple[bool, int]
"""One operation: whether it writes, and the guest byte it starts at."""

_CHUNK = 512  # random numbers drawn at once: long enough to be cheap, too short to be noticed


class Pattern(StrEnum):
    """fio's ``rw``: which operations, and whether they jump about or go from front to back."""

    RANDRW = "randrw"
    RANDREAD = "randread"
    RANDWRITE = "randwrite"
    READ = "read"
    WRITE = "write"
    RW = "rw"

    @property
    def is_random(self) -> bool:
        return self.startswith("rand")

    @property
    def reads(self) -> bool:
        return self not in (Pattern.WRITE, Pattern.RANDWRITE)

    @property
    def writes(self) -> bool:
        return self not in (Pattern.READ, Pattern.RANDREAD)


@dataclass(frozen=True, slots=True)
class Workload:
    """A benchmark's parameters; sizes and positions are guest bytes.

    Attributes:
        rw: the kind of operations.
        block_size: bytes of each operation.
        depth: operations in flight.
        runtime: seconds, or None for no limit.
        number: operations, or None for no limit.
        read_percent: share of reads where ``rw`` mixes.
        offset, size: the part of the image to work on; a size of None reaches to the image's end.
        seed: of the random numbers.
        flush_interval: a flush after so many writes; 0 for none but the one at the end.
        verify: write a stamp of place and generation, and check it on reads and at the end.
    """

    rw: Pattern = Pattern.RANDRW
    block_size: int = 4096
    depth: int = 64
    runtime: float | None = 5.0
    number: int | None = None
    read_percent: int = 70
    offset: int = 0
    size: int | None = None
    seed: int = 0
    flush_interval: int = 0
    verify: bool = False

    def __post_init__(self) -> None:
        wrong = self._first_fault()
        if wrong is not None:
            raise RequestError(wrong)

    def _first_fault(self) -> str | None:
        faults = {
            "the block size must be at least 1": self.block_size < 1,
            "the queue depth must be at least 1": self.depth < 1,
            "the run time must be more than 0 and at most 10**9 seconds": self.runtime is not None
            and not 0 < self.runtime <= 1e9,
            "the number of operations must be at least 1": self.number is not None
            and self.number < 1,
            "neither run time nor number of operations limits the run": self.runtime is None
            and self.number is None,
            "the share of reads must be 0 to 100 percent": not 0 <= self.read_percent <= 100,
            "offset and size must not be negative": self.offset < 0 or (self.size or 0) < 0,
            "the flush interval must not be negative": self.flush_interval < 0,
            "to verify, the block size must be a multiple of 16": self.verify
            and self.block_size % 16 != 0,
        }
        return next((text for text, wrong in faults.items() if wrong), None)

    def fitted(self, image_size: int) -> Workload:
        """The same with its size set, for an image of ``image_size`` bytes.

        Raises:
            RequestError: the part is not inside the image, or has no room for a block.
        """
        size = image_size - self.offset if self.size is None else self.size
        if self.offset + size > image_size:
            raise RequestError(
                f"offset {self.offset} and size {size} reach beyond the image of {image_size} bytes"
            )
        if size < self.block_size:
            raise RequestError(
                f"{max(size, 0)} bytes have no room for a block of {self.block_size}"
            )
        return replace(self, size=size)

    @property
    def mixes(self) -> bool:
        """Whether ``read_percent`` matters."""
        return self.rw.reads and self.rw.writes

    def positions(self) -> range:
        """Where blocks start, of a fitted workload."""
        assert self.size is not None
        return range(self.offset, self.offset + self.size - self.block_size + 1, self.block_size)

    def steps(self) -> Iterator[Step]:
        """The operations in the order they are begun; endless unless ``number`` is set."""
        rng = random.Random(self.seed)
        return islice(self._all_steps(rng), self.number)

    def _all_steps(self, rng: random.Random) -> Iterator[Step]:
        positions = self.positions()
        writes: Iterator[bool] = repeat(self.rw.writes)
        if self.mixes:
            writes = chain.from_iterable(_mixes(rng, self.read_percent))
            if not self.rw.is_random:
                return _two_fronts(writes, positions)
        if self.rw.is_random:
            return zip(writes, chain.from_iterable(_places(rng, positions)), strict=False)
        return zip(writes, chain.from_iterable(repeat(positions)), strict=False)


def _mixes(rng: random.Random, read_percent: int) -> Iterator[list[bool]]:
    """Whether operations write, a chunk at a time."""
    while True:
        yield rng.choices((False, True), cum_weights=(read_percent, 100), k=_CHUNK)


def _places(rng: random.Random, positions: range) -> Iterator[list[int]]:
    """Random positions, a chunk at a time."""
    while True:
        yield rng.choices(positions, k=_CHUNK)


def _two_fronts(writes: Iterator[bool], positions: range) -> Iterator[Step]:
    """Reads and writes each go from front to back at their own pace, as fio's do."""
    reading, writing = (chain.from_iterable(repeat(positions)) for _ in range(2))
    for write in writes:
        yield write, next(writing if write else reading)
