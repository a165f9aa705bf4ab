"""The cases: what is compared, with whom, on which image, and what we promise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from benchmarks.images import Recipe
from benchmarks.sides import (
    AIOFILES,
    CALLS,
    COPIES,
    FIO_PSYNC,
    FIO_URING,
    OTHER_PYTHON,
    QEMU,
    QEMU_DIRECT,
    QEMU_IO,
    Side,
)
from benchmarks.workload import Workload

__all__ = ["CASES", "Case"]

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@dataclass(frozen=True, slots=True)
class Case:
    """One claim against rivals.

    Attributes:
        name: for the command line and the report.
        group: the report's heading it stands under.
        what: one line for the table.
        why: what a reader learns from it.
        work: the stream of requests.
        image: what it runs on.
        sides: rivals and limits; the first limit is the one that bounds us.
        bar: the ratio (our requests per second over the best rival's) that we promise, or None.
        aim: the ratio that we want.
        share: the part of the limit that we want, or None.
        fresh: whether every run needs a new image.
        cold: whether the page cache holds nothing of the file before a run.
        n_images: how many images take part.
    """

    name: str
    group: str
    what: str
    why: str
    work: Workload
    image: Recipe
    sides: tuple[Side, ...] = (*QEMU, CALLS)
    bar: float | None = None
    aim: float | None = None
    share: float | None = None
    fresh: bool = False
    cold: bool = False
    n_images: int = 1

    @property
    def is_headline(self) -> bool:
        """Whether we promise something."""
        return self.bar is not None

    def shortened(self, divisor: int) -> Self:
        """The same with fewer requests."""
        work = self.work.shortened(divisor)
        stream = self.image.stream and self.image.stream.shortened(divisor)
        return replace(self, work=work, image=replace(self.image, stream=stream))


_SPREAD = 17  # odd in blocks: visits all of a power of two before it repeats
_DATA = 256 * MIB
_FILLED = Recipe(_DATA, ((0, _DATA),))
_EMPTY = Recipe(4 * GIB)


def _spread(count: int, block: int = 4 * KIB, size: int = _DATA, **more: object) -> Workload:
    return Workload(count, block, _SPREAD * block, size, **more)  # type: ignore[arg-type]


def _in_order(count: int, block: int, size: int = _DATA, **more: object) -> Workload:
    return Workload(count, block, block, size, **more)  # type: ignore[arg-type]


def _own(name: str, image: Recipe = _FILLED) -> Recipe:
    """An image that one case has for itself, because it writes to it."""
    return replace(image, owner=name)


def _rehearsed(name: str, by: str, stream: Workload) -> Recipe:
    return Recipe(stream.size, rehearsed=by, stream=stream, owner=name)  # type: ignore[arg-type]


_WRITE_4K = _spread(100_000, write=True)
_HOPPING = Workload(count=25_600, block=4 * KIB, step=2 * GIB - 4 * KIB, size=TIB)

_READS = (
    Case(
        "read-4k",
        "Cached reads",
        "4 KiB reads, spread over 256 MiB, cached",
        "The hot path: how much a request costs when no disk is in the way.",
        _spread(200_000),
        _FILLED,
        (*QEMU, CALLS, FIO_PSYNC, FIO_URING),
        bar=1.2,
        aim=1.4,
        share=0.5,
    ),
    Case(
        "read-4k-depth-1",
        "Cached reads",
        "4 KiB reads, one at a time, cached",
        "Latency: at depth 1 nothing can be merged, and a hop to a thread would show.",
        _spread(100_000, depth=1),
        _FILLED,
        (*QEMU, CALLS, FIO_PSYNC),
        bar=1.0,
        aim=1.0,
    ),
    Case(
        "read-4k-map",
        "Cached reads",
        "4 KiB reads of a mapped image (pread, map=True), spread over 256 MiB, cached",
        "The same copy without the system call.",
        _spread(200_000, mapped=True),
        _FILLED,
        bar=1.4,
        aim=2.0,
        share=0.5,
    ),
    Case(
        "view-4k",
        "Cached reads",
        "4 KiB views of a mapped image (read_view), spread over 256 MiB, cached",
        "No copy and no system call: what is left is the look-up.",
        _spread(200_000, mapped=True, view=True),
        _FILLED,
        bar=3.0,
        aim=5.0,
    ),
    Case(
        "read-64k",
        "Cached reads",
        "64 KiB reads, spread, cached",
        "A cluster a request: the copy starts to count.",
        _spread(20_000, 64 * KIB),
        _FILLED,
        (*QEMU, CALLS, FIO_PSYNC, COPIES),
    ),
    Case(
        "read-1m",
        "Cached reads",
        "1 MiB reads, spread, cached",
        "Sixteen clusters a request: the copy is nearly all.",
        _spread(2_000, MIB),
        _FILLED,
        (*QEMU, CALLS, FIO_PSYNC, COPIES),
    ),
    Case(
        "seq-read-4k",
        "Cached reads",
        "4 KiB reads in order, cached",
        "Whether order helps; it need not, where everything is in memory.",
        _in_order(100_000, 4 * KIB),
        _FILLED,
        (*QEMU, CALLS, FIO_PSYNC),
    ),
    Case(
        "seq-read-64k",
        "Cached reads",
        "64 KiB reads in order, cached",
        "What a copy of a disk does, in small pieces.",
        _in_order(20_000, 64 * KIB),
        _FILLED,
        (*QEMU, CALLS, FIO_PSYNC),
    ),
    Case(
        "seq-read-1m",
        "Cached reads",
        "1 MiB reads in order, cached",
        "What a copy of a disk does: memory bandwidth.",
        _in_order(2_000, MIB),
        _FILLED,
        (*QEMU, FIO_PSYNC, CALLS, COPIES),
        bar=1.0,
        aim=1.0,
        share=0.9,
    ),
    Case(
        "read-4k-1tib",
        "Cached reads",
        "4 KiB reads hopping over all 512 tables of a 1 TiB image",
        "A cache of whole tables reads 256 KiB for each miss; ours holds slices of 4 KiB.",
        _HOPPING,
        _rehearsed("", "ours", _HOPPING),
        bar=20.0,
        aim=50.0,
    ),
)

_WRITES = (
    Case(
        "write-4k",
        "Writes in place",
        "4 KiB writes in place, spread over 256 MiB that such writes have filled",
        "The other hot path. Folios in the page cache are small here.",
        _WRITE_4K,
        _rehearsed("write-4k", "qemu", _WRITE_4K),
        (*QEMU, CALLS, FIO_PSYNC),
        bar=2.0,
        aim=3.0,
    ),
    Case(
        # In the larger folios that larger writes leave in the page cache, the kernel takes longer
        # for each small write, whoever makes it.
        "write-4k-refill",
        "Writes in place",
        "4 KiB writes in place, spread over 256 MiB that 64 KiB writes have filled",
        "The same in larger folios, where the kernel takes longer for each write.",
        _WRITE_4K,
        _own("write-4k-refill"),
        (*QEMU, CALLS, FIO_PSYNC),
        bar=1.2,
        aim=1.2,
    ),
    Case(
        "write-64k",
        "Writes in place",
        "64 KiB writes in place, spread over 256 MiB",
        "A cluster a request: the copy starts to count.",
        _spread(20_000, 64 * KIB, write=True),
        _own("write-64k"),
    ),
    Case(
        "write-1m",
        "Writes in place",
        "1 MiB writes in place, spread over 256 MiB",
        "Sixteen clusters a request.",
        _spread(2_000, MIB, write=True),
        _own("write-1m"),
    ),
    Case(
        "mixed-4k",
        "Writes in place",
        "4 KiB requests, 7 reads to 3 writes, spread over 256 MiB",
        "Reads beside writes; the rival is qemu-io, as qemu-img bench does one or the other.",
        _spread(100_000, write=True, read_percent=70),
        _own("mixed-4k"),
        (*QEMU_IO, CALLS),
    ),
)

_NEW = (
    Case(
        "alloc-4k",
        "New clusters",
        "4 KiB writes, each into a new 64 KiB cluster",
        "Metadata at its worst: a table entry for each write. Ours commit in groups.",
        Workload(count=20_000, block=4 * KIB, step=64 * KIB, size=4 * GIB, write=True),
        _EMPTY,
        bar=10.0,
        aim=20.0,
        fresh=True,
    ),
    Case(
        "alloc-64k",
        "New clusters",
        "64 KiB writes, each into a new 64 KiB cluster",
        "An image that is being filled.",
        _in_order(16_384, 64 * KIB, 4 * GIB, write=True),
        _EMPTY,
        bar=3.0,
        aim=4.0,
        fresh=True,
    ),
    Case(
        "alloc-1m",
        "New clusters",
        "1 MiB writes, each into sixteen new clusters",
        "The same in large requests: the copy is nearly all.",
        _in_order(1_024, MIB, 4 * GIB, write=True),
        _EMPTY,
        fresh=True,
    ),
    Case(
        "zero-64k",
        "New clusters",
        "64 KiB zero writes, each over a cluster that is not allocated",
        "Only entries change; the rival is qemu-io, as qemu-img bench writes no zeroes.",
        _in_order(16_384, 64 * KIB, 4 * GIB, write=True, zero=True),
        _EMPTY,
        QEMU_IO,
        fresh=True,
    ),
)

_OVERLAYS = (
    Case(
        "overlay-read-4k",
        "Overlays",
        "4 KiB reads through an empty overlay",
        "What a backing file costs.",
        _spread(100_000),
        replace(_FILLED, layers=1),
    ),
    Case(
        "overlay-3-read-4k",
        "Overlays",
        "4 KiB reads through three empty overlays",
        "What each further one costs.",
        _spread(100_000),
        replace(_FILLED, layers=3),
    ),
    Case(
        "cow-4k",
        "Overlays",
        "4 KiB writes into an overlay, each copying a 64 KiB cluster",
        "Copy-on-write, and the flush before its mapping, which a group of ours shares.",
        Workload(count=4_096, block=4 * KIB, step=64 * KIB, size=_DATA, write=True),
        replace(_FILLED, layers=1),
        fresh=True,
    ),
)

_DURABLE = (
    Case(
        "writethrough-4k",
        "Durable writes",
        '4 KiB writes in place, cache="writethrough"',
        "Each write is durable when it returns; those that wait share a flush.",
        _spread(6_000, write=True, cache="writethrough"),
        _own("writethrough-4k"),
        bar=5.0,
        aim=10.0,
    ),
    Case(
        "flush-1",
        "Durable writes",
        "4 KiB writes in place, one at a time, a flush after each",
        "A database's log. The disk decides; nobody can share a flush.",
        _spread(1_000, write=True, depth=1, flush_every=1),
        _own("flush-1"),
    ),
    Case(
        "flush-8",
        "Durable writes",
        "4 KiB writes in place, a flush after every 8",
        "The same with a little to share.",
        _spread(4_000, write=True, depth=8, flush_every=8),
        _own("flush-8"),
    ),
    Case(
        "flush-64",
        "Durable writes",
        "4 KiB writes in place, a flush after every 64",
        "A guest's file system under load.",
        _spread(16_000, write=True, flush_every=64),
        _own("flush-64"),
    ),
)

_DISK = (
    Case(
        "cold-4k",
        "From the disk",
        "4 KiB reads, spread over 256 MiB, nothing in the page cache",
        "Reads that wait for the disk: nobody else should.",
        _spread(20_000),
        _FILLED,
        (*QEMU, FIO_URING, FIO_PSYNC),
        bar=1.0,
        aim=1.0,
        share=0.9,
        cold=True,
    ),
    Case(
        "cold-seq-1m",
        "From the disk",
        "1 MiB reads in order, nothing in the page cache",
        "The kernel reads ahead; whether we keep up with it.",
        _in_order(256, MIB),
        _FILLED,
        (*QEMU, FIO_URING, FIO_PSYNC),
        cold=True,
    ),
    Case(
        "direct-read-4k",
        "From the disk",
        '4 KiB reads, cache="none" (O_DIRECT)',
        "The device itself, with all requests in flight.",
        _spread(20_000, cache="none"),
        _FILLED,
        (*QEMU_DIRECT, FIO_URING, FIO_PSYNC),
        bar=1.0,
        aim=1.0,
        share=0.9,
    ),
    Case(
        "direct-write-4k",
        "From the disk",
        '4 KiB writes in place, cache="none" (O_DIRECT)',
        "The same for writes.",
        _spread(10_000, write=True, cache="none"),
        _own("direct-write-4k"),
        (*QEMU_DIRECT, FIO_URING, FIO_PSYNC),
    ),
)

_PYTHON = (
    Case(
        "read-4k-aiofiles",
        "Python's other ways",
        "4 KiB reads, cached; aiofiles, seek and read, on a raw file",
        "What most asyncio programs do, each request two hops to a thread.",
        _spread(20_000),
        _FILLED,
        (AIOFILES,),
        bar=20.0,
        aim=25.0,
    ),
    Case(
        "read-4k-executor",
        "Python's other ways",
        "4 KiB reads, cached; os.pread in a thread pool, on a raw file",
        "The best that asyncio has itself: one hop a request.",
        _spread(20_000),
        _FILLED,
        OTHER_PYTHON,
    ),
)

CASES = (*_READS, *_WRITES, *_NEW, *_OVERLAYS, *_DURABLE, *_DISK, *_PYTHON)
