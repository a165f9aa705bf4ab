"""What a benchmark does to an image: which operations, where, how many. In fio's words.

Pure: the whole sequence of operations follows from the workload and its seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import chain, islice, repeat

from qedasync.errors import RequestError

__all__ = ["MAX_IN_FLIGHT", "Pattern", "Step", "Workload"]

Step = tuple[bool, int]
"""One operation: whether it writes (or trims), and the guest byte it starts at."""

MAX_IN_FLIGHT = 65536
"""Operations that a workload may have in flight: each is a task."""

_CHUNK = 512  # random numbers drawn at once: long enough to be cheap, too short to be noticed


class Pattern(StrEnum):
    """fio's ``rw``: which operations, and whether they jump about or go from front to back."""

    RANDRW = "randrw"
    RANDREAD = "randread"
    RANDWRITE = "randwrite"
    READ = "read"
    WRITE = "write"
    RW = "rw"
    TRIM = "trim"
    RANDTRIM = "randtrim"

    @property
    def is_random(self) -> bool:
        return self.startswith("rand")

    @property
    def reads(self) -> bool:
        return self in (Pattern.READ, Pattern.RANDREAD, Pattern.RW, Pattern.RANDRW)

    @property
    def writes(self) -> bool:
        """Whether it changes the image."""
        return self not in (Pattern.READ, Pattern.RANDREAD)

    @property
    def trims(self) -> bool:
        """Whether it discards; then it does nothing else."""
        return self in (Pattern.TRIM, Pattern.RANDTRIM)


@dataclass(frozen=True, slots=True)
class Workload:
    """A benchmark's parameters; sizes and positions are guest bytes.

    Attributes:
        rw: the kind of operations.
        block_size: bytes of each operation.
        write_size: bytes of each write or trim, where that is not the same; None where it is.
        depth: operations in flight, of each job.
        jobs: sequences of operations that run beside each other, each with random numbers of its
            own.
        runtime: seconds, or None for no limit.
        number: operations of each job, or None for no limit.
        read_percent: share of reads where ``rw`` mixes.
        offset, size: the part of the image to work on; a size of None reaches to the image's end.
        seed: of the random numbers.
        flush_interval: a flush after so many writes; 0 for none but the one at the end.
        verify: write a stamp of place and generation, and check it on reads and at the end.
        fill: the byte that is written, or None for random bytes.
    """

    rw: Pattern = Pattern.RANDRW
    block_size: int = 4096
    write_size: int | None = None
    depth: int = 64
    jobs: int = 1
    runtime: float | None = 5.0
    number: int | None = None
    read_percent: int = 70
    offset: int = 0
    size: int | None = None
    seed: int = 0
    flush_interval: int = 0
    verify: bool = False
    fill: int | None = None

    def __post_init__(self) -> None:
        wrong = self._first_fault()
        if wrong is not None:
            raise RequestError(wrong)

    def _first_fault(self) -> str | None:
        faults = {
            "the block size must be at least 1": min(self.block_size, self.write_length) < 1,
            "the queue depth must be at least 1": self.depth < 1,
            "the number of jobs must be at least 1": self.jobs < 1,
            f"at most {MAX_IN_FLIGHT} operations can be in flight": self.in_flight > MAX_IN_FLIGHT,
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
            "to verify, reads and writes must be of one size": self.verify
            and self.write_length != self.block_size,
            "what is trimmed cannot be verified": self.verify and self.rw.trims,
            "what is written must be a byte, 0 to 255": not 0 <= (self.fill or 0) <= 255,
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
        block = max(self.block_size, self.write_length)
        if size < block:
            raise RequestError(f"{max(size, 0)} bytes have no room for a block of {block}")
        return replace(self, size=size)

    @property
    def write_length(self) -> int:
        """Bytes of each write or trim."""
        return self.block_size if self.write_size is None else self.write_size

    @property
    def in_flight(self) -> int:
        """Operations in flight, of all jobs."""
        return self.depth * self.jobs

    @property
    def mixes(self) -> bool:
        """Whether ``read_percent`` matters."""
        return self.rw.reads and self.rw.writes

    def positions(self, *, writes: bool = False) -> range:
        """Where blocks that are read, or written, start; of a fitted workload."""
        assert self.size is not None
        length = self.write_length if writes else self.block_size
        return range(self.offset, self.offset + self.size - length + 1, length)

    def steps(self, job: int = 0) -> Iterator[Step]:
        """The operations in the order they are begun; endless unless ``number`` is set."""
        rng = random.Random(self.seed + job)
        return islice(self._all_steps(rng), self.number)

    def _all_steps(self, rng: random.Random) -> Iterator[Step]:
        to_read, to_write = self.positions(), self.positions(writes=True)
        order = partial(_jumping, rng) if self.rw.is_random else _from_front_to_back
        if not self.mixes:
            return zip(repeat(self.rw.writes), order(to_write if self.rw.writes else to_read))
        writes = chain.from_iterable(_mixes(rng, self.read_percent))
        if self.rw.is_random and to_read == to_write:
            return zip(writes, order(to_read), strict=False)
        # Reads and writes go from front to back at their own pace, as fio's do.
        return _two_fronts(writes, order(to_read), order(to_write))


def _mixes(rng: random.Random, read_percent: int) -> Iterator[list[bool]]:
    """Whether operations write, a chunk at a time."""
    while True:
        yield rng.choices((False, True), cum_weights=(read_percent, 100), k=_CHUNK)


def _jumping(rng: random.Random, positions: range) -> Iterator[int]:
    return chain.from_iterable(rng.choices(positions, k=_CHUNK) for _ in repeat(None))


def _from_front_to_back(positions: range) -> Iterator[int]:
    return chain.from_iterable(repeat(positions))


def _two_fronts(
    writes: Iterator[bool], reading: Iterator[int], writing: Iterator[int]
) -> Iterator[Step]:
    for write in writes:
        yield write, next(writing if write else reading)
