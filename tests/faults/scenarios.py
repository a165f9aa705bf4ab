"""What a guest does while a storage call goes wrong: one scenario for each path of the engine.

``prepare`` runs on a healthy disk; ``script`` is then run once for every call it makes and every
way in which that call can go wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from qedasync.format.header import Features, Header
from qedasync.storage.memory import SparseBytes
from tests.faults.disks import turns
from tests.faults.guest import CLUSTER, SPAN, Guest, backing_value, blank, raw_backing

__all__ = ["SCENARIOS", "Scenario"]

SIZE = 48 * CLUSTER
QUARTER = CLUSTER // 4

Script = Callable[[Guest], Awaitable[None]]


async def nothing(guest: Guest) -> None:
    """Leave the disk as it is."""


@dataclass(frozen=True)
class Scenario:
    """Something a guest does.

    Attributes:
        name: for the test's id.
        script: what is disturbed.
        prepare: what was there before.
        size: guest bytes.
        below: bytes of the raw file at the end of the chain; 0 if there is none.
        through: whether a QED image lies between the disk and the raw file.
        opened: whether the disk is open when the script begins; else the script opens it.
        damage: what happens to the file between ``prepare`` and ``script``.
        options: for ``qedasync.open``.
    """

    name: str
    script: Script
    prepare: Script = nothing
    size: int = SIZE
    below: int = 0
    through: bool = False
    opened: bool = True
    damage: Callable[[SparseBytes], None] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def initial(self, pos: int) -> int:
        """The value of a grain that nobody wrote."""
        return backing_value(pos) if pos < min(self.below, self.size) else 0

    def files(self) -> list[SparseBytes]:
        """The chain before anything was written, top first."""
        if not self.below:
            return [blank(self.size)]
        files = [raw_backing(self.below)]
        if self.through:
            files.insert(0, blank(self.size, backing="base.raw", raw=True))
        raw = len(files) == 1
        return [blank(self.size, backing="base.raw" if raw else "base.qed", raw=raw), *files]


# ------------------------------------------------------------ what was before


async def data(guest: Guest) -> None:
    """Clusters 0 to 7 hold data, 4 to 7 before 0 to 3 in the file."""
    await guest.write(4 * CLUSTER, 4 * CLUSTER)
    await guest.write(0, 4 * CLUSTER)


async def one(guest: Guest) -> None:
    """A table is there, and one cluster."""
    await guest.write(20 * CLUSTER, CLUSTER)


async def zero_clusters(guest: Guest) -> None:
    """Clusters 0 to 7 are ZERO."""
    await guest.zero(0, 8 * CLUSTER)


async def mixed(guest: Guest) -> None:
    """Data in 0, 1 and 4, ZERO in 2 and 6, nothing in 3, 5 and 7."""
    await guest.write(0, 2 * CLUSTER)
    await guest.write(4 * CLUSTER, CLUSTER)
    await guest.zero(2 * CLUSTER, CLUSTER)
    await guest.zero(6 * CLUSTER, CLUSTER)


async def three_tables(guest: Guest) -> None:
    """A cluster in each of three tables."""
    for table in range(3):
        await guest.write(table * SPAN, CLUSTER)


# --------------------------------------------------------------- the requests


async def in_place_small(guest: Guest) -> None:
    await guest.write(CLUSTER + 512, 512)
    await guest.read(0, 2 * CLUSTER)


async def in_place_over_runs(guest: Guest) -> None:
    await guest.write(2 * CLUSTER + QUARTER, 4 * CLUSTER)
    await guest.read(0, 8 * CLUSTER)


async def in_place_many(guest: Guest) -> None:
    await guest.together(*(guest.write(i * CLUSTER + QUARTER, 512) for i in range(8)))


async def allocate_first(guest: Guest) -> None:
    await guest.write(3 * CLUSTER + 512, 1024)


async def allocate_small(guest: Guest) -> None:
    await guest.write(3 * CLUSTER + 512, 512)
    await guest.write(3 * CLUSTER + 2048, 512)
    await guest.read(3 * CLUSTER, CLUSTER)


async def allocate_large(guest: Guest) -> None:
    await guest.write(2 * CLUSTER + QUARTER, 9 * CLUSTER)


async def allocate_around_data(guest: Guest) -> None:
    await guest.write(18 * CLUSTER + QUARTER, 5 * CLUSTER)


async def allocate_many(guest: Guest) -> None:
    await guest.together(*(guest.write((2 * i + 1) * CLUSTER, 512) for i in range(8)))


async def allocate_scattered(guest: Guest) -> None:
    """Entries far apart, so that the write of the table spans several sectors."""
    await guest.together(*(guest.write(i * 65 * CLUSTER, 512) for i in range(1, 6)))


async def share_a_cluster(guest: Guest) -> None:
    await guest.together(
        *(guest.write(3 * CLUSTER + i * QUARTER, QUARTER) for i in range(4)),
        guest.write(4 * CLUSTER, 512),
    )


async def overlap(guest: Guest) -> None:
    await guest.together(
        guest.write(CLUSTER, 3 * CLUSTER),
        guest.write(2 * CLUSTER + QUARTER, 2 * CLUSTER),
        guest.write(3 * CLUSTER, 512),
    )
    await guest.read(0, 6 * CLUSTER)


async def new_tables(guest: Guest) -> None:
    await guest.write(SPAN - 2 * CLUSTER, 4 * CLUSTER)
    await guest.together(*(guest.write(i * SPAN + 9 * CLUSTER, 512) for i in range(3)))


async def old_and_new_tables(guest: Guest) -> None:
    await guest.together(
        guest.write(5 * CLUSTER, 512),
        guest.write(SPAN + 5 * CLUSTER, 512),
        guest.write(2 * SPAN + 5 * CLUSTER, CLUSTER),
    )


async def write_into_zero_clusters(guest: Guest) -> None:
    await guest.together(
        guest.write(512, 512),
        guest.write(2 * CLUSTER, CLUSTER),
        guest.write(3 * CLUSTER + QUARTER, 2 * CLUSTER),
    )
    await guest.read(0, 8 * CLUSTER)


async def zero_unallocated(guest: Guest) -> None:
    await guest.zero(2 * CLUSTER, 4 * CLUSTER)
    await guest.zero(8 * CLUSTER + 512, 512)


async def zero_mixed(guest: Guest) -> None:
    await guest.zero(QUARTER, 7 * CLUSTER)


async def zero_beside_data(guest: Guest) -> None:
    await guest.together(
        guest.write(3 * CLUSTER, 512),
        guest.zero(3 * CLUSTER, CLUSTER),
        guest.write(3 * CLUSTER + 2048, 512),
        guest.zero(4 * CLUSTER, 2 * CLUSTER),
    )


async def zero_to_the_end(guest: Guest) -> None:
    size = guest.disk.size
    await guest.zero(size - CLUSTER - 512, CLUSTER + 512)


async def copy_on_write_part(guest: Guest) -> None:
    await guest.write(3 * CLUSTER + 512, 512)
    await guest.read(2 * CLUSTER, 3 * CLUSTER)


async def copy_on_write_ends(guest: Guest) -> None:
    await guest.write(3 * CLUSTER + QUARTER, 3 * CLUSTER)


async def copy_on_write_many(guest: Guest) -> None:
    await guest.together(*(guest.write(i * CLUSTER + 512, 512) for i in range(1, 7)))


async def overlay_mixed(guest: Guest) -> None:
    await guest.together(
        guest.write(8 * CLUSTER + 512, 512),
        guest.zero(9 * CLUSTER, CLUSTER),
        guest.zero(10 * CLUSTER + 512, 512),
        guest.write(2 * CLUSTER + 512, 512),
        guest.write(6 * CLUSTER, CLUSTER),
    )
    await guest.read(0, 12 * CLUSTER)


async def read_below(guest: Guest) -> None:
    await guest.read(0, 12 * CLUSTER)
    await guest.together(*(guest.read(i * CLUSTER, 512) for i in range(12)))


async def read_cold(guest: Guest) -> None:
    await guest.together(*(guest.read(i % 3 * SPAN, 512) for i in range(6)))
    await guest.write(SPAN + 512, 512)


async def grow(guest: Guest) -> None:
    await guest.grow(SIZE + 10 * CLUSTER)
    if guest.disk.size > SIZE:
        await guest.write(SIZE + CLUSTER, 512)


async def grow_while_writing(guest: Guest) -> None:
    last = SIZE - QUARTER
    await guest.together(
        guest.grow(SIZE + 10 * CLUSTER), guest.write(last, 512), guest.write(512, 512)
    )
    await guest.read(last - CLUSTER, CLUSTER)


async def flush(guest: Guest) -> None:
    await guest.write(3 * CLUSTER, 512)
    await guest.flush()
    await guest.together(guest.write(512, 512), guest.flush(), guest.flush())
    await guest.write(4 * CLUSTER, 512)
    await guest.flush()


async def write_through(guest: Guest) -> None:
    await guest.together(guest.write(512, 512), guest.write(3 * CLUSTER, 512))
    await guest.zero(5 * CLUSTER, CLUSTER)


async def close(guest: Guest) -> None:
    await guest.write(3 * CLUSTER, 512)
    await guest.close()


async def close_while_writing(guest: Guest) -> None:
    await guest.together(
        guest.write(512, 512),
        guest.write(9 * CLUSTER, 512),
        guest.read(0, 512),
        guest.close(),
    )


async def let_the_timer_run(guest: Guest) -> None:
    await guest.write(9 * CLUSTER, 512)
    await turns(5)
    guest.clock.advance(10)
    await guest.together(guest.write(10 * CLUSTER, 512), guest.write(512, 512))
    await guest.flush()


async def open_and_close(guest: Guest) -> None:
    await guest.open()
    if guest.image:
        await guest.read(0, 512)
    await guest.close()


async def open_and_write(guest: Guest) -> None:
    await guest.open()
    if guest.image:
        await guest.write(512, 512)
        await guest.write(9 * CLUSTER, 512)
    await guest.close()


async def discard(guest: Guest) -> None:
    await guest.discard(0, 6 * CLUSTER + 512)


async def much_at_once(guest: Guest) -> None:
    await guest.together(
        guest.write(QUARTER, 2 * CLUSTER),
        guest.write(3 * CLUSTER + 512, 512),
        guest.zero(5 * CLUSTER, 2 * CLUSTER),
        guest.read(0, 8 * CLUSTER),
        guest.flush(),
        guest.write(SPAN + CLUSTER, 2 * CLUSTER),
        guest.discard(4 * CLUSTER, CLUSTER),
    )
    await guest.flush()


# --------------------------------------------------------------------- damage


def set_need_check(content: SparseBytes) -> None:
    """As a crash leaves it."""
    head = bytearray(64)
    content.read_into(head, 0)
    content.write(Header.parse(head).with_features(set=Features.NEED_CHECK).pack(), 0)


def point_past_the_end(content: SparseBytes) -> None:
    """An entry reached the disk, its cluster did not."""
    set_need_check(content)
    table = bytearray(8)
    content.read_into(table, CLUSTER)
    entry = (content.size // CLUSTER + 40) * CLUSTER
    content.write(entry.to_bytes(8, "little"), int.from_bytes(table, "little") + 30 * 8)


def leave_a_partial_cluster(content: SparseBytes) -> None:
    """Stale bytes after the last whole cluster."""
    set_need_check(content)
    content.write(b"\xee" * 1536, content.size)


def unknown_autoclear(content: SparseBytes) -> None:
    """A bit that has to go before the first write."""
    content.write((1 << 40).to_bytes(8, "little"), 32)


SCENARIOS = [
    Scenario("in-place-small", in_place_small, data),
    Scenario("in-place-over-runs", in_place_over_runs, data),
    Scenario("in-place-many", in_place_many, data),
    Scenario("allocate-first", allocate_first),
    Scenario("allocate-small", allocate_small, one),
    Scenario("allocate-large", allocate_large, one),
    Scenario("allocate-around-data", allocate_around_data, one),
    Scenario("allocate-many", allocate_many, one),
    Scenario("allocate-many-first", allocate_many),
    Scenario("allocate-scattered", allocate_scattered, one, size=SPAN),
    Scenario("share-a-cluster", share_a_cluster, one),
    Scenario("overlap", overlap, one),
    Scenario("new-tables", new_tables, size=3 * SPAN),
    Scenario("old-and-new-tables", old_and_new_tables, one, size=3 * SPAN),
    Scenario("write-into-zero-clusters", write_into_zero_clusters, zero_clusters),
    Scenario("zero-unallocated", zero_unallocated, one),
    Scenario("zero-mixed", zero_mixed, mixed),
    Scenario("zero-beside-data", zero_beside_data, one),
    Scenario("zero-to-the-end", zero_to_the_end, one, size=SIZE + 512),
    Scenario("discard", discard, mixed),
    Scenario("much-at-once", much_at_once, data, size=2 * SPAN),
    Scenario(
        "small-cache",
        much_at_once,
        three_tables,
        size=3 * SPAN,
        options={"l2_cache_size": CLUSTER},
    ),
    Scenario("overlay-part", copy_on_write_part, one, below=SIZE),
    Scenario("overlay-ends", copy_on_write_ends, one, below=SIZE),
    Scenario("overlay-first", copy_on_write_part, below=SIZE),
    Scenario("overlay-many", copy_on_write_many, below=SIZE),
    Scenario("overlay-of-a-short-file", copy_on_write_many, one, below=4 * CLUSTER + 1280),
    Scenario("overlay-of-a-long-file", zero_to_the_end, one, size=SIZE + 512, below=2 * SIZE),
    Scenario("overlay-mixed", overlay_mixed, mixed, below=SIZE),
    Scenario("overlay-zeroes", zero_mixed, mixed, below=SIZE),
    Scenario("overlay-reads", read_below, mixed, below=SIZE),
    Scenario("overlay-on-qed", overlay_mixed, mixed, below=SIZE, through=True),
    Scenario("overlay-on-qed-reads", read_below, mixed, below=SIZE, through=True),
    Scenario("read-cold", read_cold, three_tables, size=3 * SPAN),
    Scenario("grow", grow, data),
    Scenario("grow-from-a-partial-cluster", grow, data, size=SIZE - 1024),
    Scenario("grow-while-writing", grow_while_writing, one),
    Scenario("grow-over-a-longer-file", grow, one, size=SIZE - 1024, below=SIZE + 4 * CLUSTER),
    Scenario("flush", flush, one),
    Scenario("write-through", write_through, mixed, options={"cache": "writethrough"}),
    Scenario("close", close, one),
    Scenario("close-overlay", close, one, below=SIZE),
    Scenario("close-while-writing", close_while_writing, data),
    Scenario("timer", let_the_timer_run, data, options={"need_check_timeout": 5}),
    Scenario("open", open_and_close, mixed, opened=False),
    Scenario("open-and-clear-bits", open_and_write, data, opened=False, damage=unknown_autoclear),
    Scenario("open-dirty", open_and_write, data, opened=False, damage=set_need_check),
    Scenario("open-damaged", open_and_write, data, opened=False, damage=point_past_the_end),
    Scenario("open-torn", open_and_write, data, opened=False, damage=leave_a_partial_cluster),
]
