"""The cases: what is compared, on which image, and what we promise."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks import ours, qemu
from benchmarks.workload import Workload

__all__ = ["CASES", "Case"]

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@dataclass(frozen=True, slots=True)
class Case:
    """One claim against ``qemu-img bench``.

    Attributes:
        name: for the command line and the report.
        what: one line for the table.
        work: the stream of requests.
        image_size: guest bytes.
        bar: the ratio (our requests per second over QEMU's best) that we promise.
        allocated: guest ranges (offset, length) that hold data before the run.
        rehearsed: who wrote the stream's own blocks before the run, or "" if nobody did.
        fresh: whether every run needs a new image.
    """

    name: str
    what: str
    work: Workload
    image_size: int
    bar: float
    allocated: tuple[tuple[int, int], ...] = ()
    rehearsed: Literal["", "qemu", "ours"] = ""
    fresh: bool = False

    def prepare(self, image: str) -> None:
        """Make the image, by QEMU's tools but for one rehearsal, which takes them minutes."""
        qemu.create(image, self.image_size)
        stream = replace(self.work, write=True, cache="unsafe")
        if self.rehearsed == "ours":
            asyncio.run(ours.run(image, stream))
        elif self.rehearsed == "qemu":
            qemu.bench(image, stream, "threads")
        if self.allocated:
            qemu.fill(image, list(self.allocated))


_SPREAD = 17 * 4 * KIB  # odd in blocks: visits all of a power of two before it repeats

CASES = (
    Case(
        "read-4k",
        "4 KiB reads, spread over 256 MiB, cached",
        Workload(count=200_000, block=4 * KIB, step=_SPREAD, size=256 * MIB),
        256 * MIB,
        1.2,
        ((0, 256 * MIB),),
    ),
    Case(
        "write-4k",
        "4 KiB writes in place, spread over 256 MiB that such writes have filled",
        Workload(count=100_000, block=4 * KIB, step=_SPREAD, size=256 * MIB, write=True),
        256 * MIB,
        2.0,
        rehearsed="qemu",
    ),
    Case(
        # In the larger folios that larger writes leave in the page cache, the kernel takes longer
        # for each small write, whoever makes it.
        "write-4k-refill",
        "4 KiB writes in place, spread over 256 MiB that 64 KiB writes have filled",
        Workload(count=100_000, block=4 * KIB, step=_SPREAD, size=256 * MIB, write=True),
        256 * MIB,
        1.2,
        ((0, 256 * MIB),),
    ),
    Case(
        "alloc-4k",
        "4 KiB writes, each into a new 64 KiB cluster",
        Workload(count=20_000, block=4 * KIB, step=64 * KIB, size=4 * GIB, write=True),
        4 * GIB,
        10.0,
        fresh=True,
    ),
    Case(
        "alloc-64k",
        "64 KiB writes, each into a new 64 KiB cluster",
        Workload(count=16_384, block=64 * KIB, step=64 * KIB, size=4 * GIB, write=True),
        4 * GIB,
        3.0,
        fresh=True,
    ),
    Case(
        "read-4k-1tib",
        "4 KiB reads hopping over all 512 tables of a 1 TiB image",
        Workload(count=25_600, block=4 * KIB, step=2 * GIB - 4 * KIB, size=TIB),
        TIB,
        20.0,
        rehearsed="ours",
    ),
    Case(
        "writethrough-4k",
        '4 KiB writes in place, cache="writethrough"',
        Workload(
            count=6_000,
            block=4 * KIB,
            step=_SPREAD,
            size=256 * MIB,
            write=True,
            cache="writethrough",
        ),
        256 * MIB,
        5.0,
        ((0, 256 * MIB),),
    ),
)
