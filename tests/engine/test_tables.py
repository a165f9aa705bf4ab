"""The mapping: one load however many wait, nothing stale, nothing that lies on a table."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qedasync.engine.allocator import Allocator
from qedasync.engine.l2_cache import L2Cache
from qedasync.engine.metadata import load_l1
from qedasync.engine.stats import Stats
from qedasync.engine.tables import Tables
from qedasync.engine.tasks import TaskOwner
from qedasync.errors import CorruptTable, StorageError
from qedasync.events import Event
from qedasync.format.cluster import ClusterKind, Lookup, NeedSlice
from qedasync.format.geometry import Geometry
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from tests.engine.harness import CLUSTER, SPAN, image, turns

TABLE = 2 * CLUSTER
"""The L2 table of the first L1 entry."""


class Case:
    """Tables over a storage whose reads can be held, counted and failed."""

    def __init__(
        self,
        content: bytes,
        *,
        table_size: int = 1,
        inline: bool = False,
        budget: int = 1 << 20,
        guard: bool = True,
    ) -> None:
        geometry = Geometry(CLUSTER, table_size, 1, CLUSTER)
        self.memory = MemoryStorage(content, inline=inline)
        self.storage = FaultStorage(self.memory, inline=inline)
        self.allocator = Allocator(geometry, len(content))
        self.tasks = TaskOwner("test")
        self.stats = Stats()
        l1 = array("Q", content[CLUSTER : CLUSTER + geometry.table_bytes])
        self.tables = Tables(
            self.storage,
            geometry,
            l1,
            L2Cache(budget),
            self.allocator,
            self.tasks,
            self.stats,
            guard=guard,
        )

    @property
    def loads(self) -> int:
        return self.storage.count(event=Event.L2_LOAD)

    def put(self, offset: int, entries: dict[int, int]) -> None:
        """Change entries on disk."""
        for index, value in entries.items():
            self.memory.content.write(value.to_bytes(8, "little"), offset + 8 * index)


@asynccontextmanager
async def case(
    l2: dict[int, int] | None = None, *, inline: bool = False, guard: bool = True
) -> AsyncIterator[Case]:
    """One table with some entries."""
    content = image(clusters=32, l1={0: TABLE}, l2={TABLE: l2 or {}})
    made = Case(content, inline=inline, guard=guard)
    yield made
    await made.tasks.drain()


async def test_find_cluster_without_table_needs_no_load() -> None:
    async with case() as made:
        found = await made.tables.find_cluster(SPAN + 5, 2 * SPAN)
        assert found == Lookup(ClusterKind.L1, SPAN - 5, 0)
        assert made.loads == 0


async def test_find_cluster_past_the_l1_in_use_is_unallocated() -> None:
    async with case() as made:
        del made.tables.l1[4:]
        assert (await made.tables.find_cluster(100 * SPAN, 10)).kind is ClusterKind.L1
        assert made.tables.table_offset(100 * SPAN) == 0


async def test_find_cluster_loads_then_finds() -> None:
    async with case({0: 5 * CLUSTER, 1: 6 * CLUSTER, 2: 1}) as made:
        found = await made.tables.find_cluster(100, 3 * CLUSTER)
        assert found == Lookup(ClusterKind.FOUND, 2 * CLUSTER - 100, 5 * CLUSTER + 100)
        assert made.stats.l2_loads == 1
        assert await made.tables.find_cluster(2 * CLUSTER, 10) == Lookup(ClusterKind.ZERO, 10, 0)
        assert made.loads == 1


async def test_lookup_inline_storage_loads_at_once() -> None:
    async with case({0: 5 * CLUSTER}, inline=True) as made:
        found = made.tables.lookup(0, 1)
        assert found == Lookup(ClusterKind.FOUND, 1, 5 * CLUSTER)


async def test_lookup_storage_that_would_block_answers_need_slice() -> None:
    async with case() as made:
        assert made.tables.lookup(3, 1) == NeedSlice(0, TABLE)


async def test_find_cluster_many_at_once_share_one_load() -> None:
    async with case({0: 5 * CLUSTER}) as made:
        founds = await asyncio.gather(*(made.tables.find_cluster(0, 1) for _ in range(20)))
        assert {found.offset for found in founds} == {5 * CLUSTER}
        assert made.loads == 1


async def test_find_cluster_cancelled_leaves_the_load_to_the_others() -> None:
    async with case({0: 5 * CLUSTER}) as made:
        made.storage.add(Fault("pause", event=Event.L2_LOAD))
        first, second = (asyncio.create_task(made.tables.find_cluster(0, 1)) for _ in range(2))
        await made.storage.wait_paused()
        first.cancel()
        await turns()
        assert first.cancelled()
        made.storage.resume()
        assert (await second).offset == 5 * CLUSTER
        assert made.loads == 1


async def test_find_cluster_failing_load_fails_all_who_wait_and_is_tried_again() -> None:
    async with case({0: 5 * CLUSTER}) as made:
        made.storage.add(Fault("error", event=Event.L2_LOAD))
        results = await asyncio.gather(
            *(made.tables.find_cluster(0, 1) for _ in range(3)), return_exceptions=True
        )
        assert [type(result) for result in results] == [StorageError] * 3
        assert (await made.tables.find_cluster(0, 1)).offset == 5 * CLUSTER


@pytest.mark.parametrize("change", ["publish", "forget"])
async def test_load_overtaken_by_a_change_reads_again(change: str) -> None:
    async with case() as made:
        made.storage.add(Fault("pause", event=Event.L2_LOAD))
        loading = asyncio.create_task(made.tables.find_cluster(0, 1))
        await made.storage.wait_paused()
        # The read has "happened" in the kernel: what it brings is the old content.
        made.storage.resume()
        await asyncio.sleep(0)
        made.put(TABLE, {0: 7 * CLUSTER})
        if change == "publish":
            made.tables.publish({0: {0: 7 * CLUSTER}}, {})
        else:
            made.tables.forget([0])
        assert (await loading).offset == 7 * CLUSTER
        assert made.loads == 2


async def test_publish_changes_cached_entries_and_the_l1() -> None:
    async with case() as made:
        await made.tables.find_cluster(0, 1)
        made.tables.publish({0: {3: 1}, 512: {0: 1}}, {1: 8 * CLUSTER})
        assert await made.tables.find_cluster(3 * CLUSTER, 1) == Lookup(ClusterKind.ZERO, 1, 0)
        assert made.tables.table_offset(SPAN) == 8 * CLUSTER
        assert made.loads == 1


async def test_forget_loads_again_when_needed() -> None:
    async with case() as made:
        await made.tables.find_cluster(0, 1)
        made.put(TABLE, {0: 7 * CLUSTER})
        made.tables.forget([0])
        assert (await made.tables.find_cluster(0, 1)).offset == 7 * CLUSTER


async def test_reset_takes_another_l1_and_forgets_all() -> None:
    async with case({0: 5 * CLUSTER}) as made:
        await made.tables.find_cluster(0, 1)
        made.tables.reset(array("Q", bytes(8)))
        assert (await made.tables.find_cluster(0, 1)).kind is ClusterKind.L1
        assert len(made.tables.cache) == 0


async def test_find_mapped_answers_only_what_one_young_cluster_has() -> None:
    async with case({0: 5 * CLUSTER, 1: 6 * CLUSTER, 2: 1}) as made:
        find = made.tables.find_mapped
        assert find(0, 1) == 0, "not loaded yet"
        await made.tables.find_cluster(0, 1)
        assert find(10, CLUSTER - 10) == 5 * CLUSTER + 10
        assert find(10, CLUSTER - 9) == 0
        assert find(2 * CLUSTER, 1) == 0
        assert find(3 * CLUSTER, 1) == 0


# --------------------------------------------------------------------- slices


async def test_slice_entries_without_table_are_zeroes() -> None:
    async with case() as made:
        assert await made.tables.slice_entries(1) == array("Q", bytes(4096))
        assert made.loads == 0


async def test_slice_entries_are_those_of_the_cache() -> None:
    async with case({0: 5 * CLUSTER}) as made:
        entries = await made.tables.slice_entries(0)
        assert entries[0] == 5 * CLUSTER
        assert await made.tables.slice_entries(0) is entries


@pytest.mark.parametrize("inline", [True, False])
async def test_slice_entries_with_a_bad_first_entry_are_given_all_the_same(inline: bool) -> None:
    async with case({0: 12345, 1: 5 * CLUSTER}, inline=inline) as made:
        entries = await made.tables.slice_entries(0)
        assert list(entries[:2]) == [12345, 5 * CLUSTER]


async def test_slice_entries_of_a_bad_table_raise() -> None:
    async with case() as made:
        made.tables.l1[0] = 77
        with pytest.raises(CorruptTable) as caught:
            await made.tables.slice_entries(0)
        assert (caught.value.level, caught.value.index, caught.value.value) == (1, 0, 77)


async def test_hold_slice_loaded_meanwhile_is_the_held_one() -> None:
    async with case() as made:
        held = await made.tables.slice_entries(0)
        with made.tables.hold({0: held}):
            made.tables.forget([0])
            made.put(TABLE, {0: 9 * CLUSTER})  # a commit's write, not published yet
            assert (await made.tables.find_cluster(0, 1)).kind is ClusterKind.L2
        made.tables.forget([0])
        assert (await made.tables.find_cluster(0, 1)).offset == 9 * CLUSTER


# ------------------------------------------------------------------ read ahead

BIG_TABLES = dict.fromkeys(range(16), 20 * CLUSTER)
"""L1 entries for tables of 16 slices; all name one, which is of no matter to who reads."""


async def test_read_ahead_sequential_access_takes_few_reads() -> None:
    content = image(256 * SPAN, table_size=16, clusters=64, l1=BIG_TABLES)
    made = Case(content, table_size=16, inline=True)
    for number in range(128):
        made.tables.lookup(number * SPAN, 1)
    assert made.stats.l2_loads == 128
    assert made.loads < 70
    assert made.storage.calls[-1].length is not None


async def test_read_ahead_random_access_reads_one_slice_each() -> None:
    content = image(256 * SPAN, table_size=16, clusters=64, l1=BIG_TABLES)
    made = Case(content, table_size=16, inline=True)
    for number in (7, 3, 9, 1, 5):
        made.tables.lookup(number * SPAN, 1)
    assert {call.length for call in made.storage.calls} == {4096}


async def test_read_ahead_does_not_replace_a_slice_that_is_here() -> None:
    content = image(16 * SPAN, table_size=16, clusters=64, l1=BIG_TABLES)
    made = Case(content, table_size=16, inline=True)
    made.tables.lookup(3 * SPAN, 1)
    here = made.tables.cache[3]
    for number in (0, 1, 2, 4):
        made.tables.lookup(number * SPAN, 1)
    assert made.tables.cache[3] is here


async def test_load_l1_reads_whole_sectors_of_what_is_used() -> None:
    storage = FaultStorage(MemoryStorage(image(l1={0: TABLE, 1: 3 * CLUSTER}, clusters=8)))
    geometry = Geometry(CLUSTER, 1, 1, CLUSTER)
    l1 = await load_l1(storage, geometry, SPAN + 1)
    assert list(l1) == [TABLE, 3 * CLUSTER] + [0] * 62
    assert [(call.offset, call.length) for call in storage.calls] == [(CLUSTER, 512)]
    assert len(await load_l1(storage, geometry, 65 * SPAN)) == 128
    assert len(await load_l1(storage, geometry, 512 * SPAN)) == 512
    assert len(await load_l1(storage, geometry, 0)) == 0


# ------------------------------------------------------------ hostile mappings


async def test_find_cluster_data_on_top_of_a_table_is_refused_for_writers() -> None:
    async with case({0: TABLE, 1: 5 * CLUSTER}) as made:
        with pytest.raises(CorruptTable) as caught:
            await made.tables.find_cluster(0, 10)
        assert (caught.value.level, caught.value.index, caught.value.value) == (2, 0, TABLE)
        assert made.tables.find_mapped(CLUSTER, 1) == 0, "the slice is not trusted"
        assert (await made.tables.find_cluster(CLUSTER, 1)).offset == 5 * CLUSTER


async def test_find_cluster_data_on_top_of_a_table_is_served_to_readers() -> None:
    async with case({0: TABLE}, guard=False) as made:
        assert (await made.tables.find_cluster(0, 10)).offset == TABLE


async def test_find_cluster_run_that_reaches_a_table_is_refused() -> None:
    content = image(
        clusters=32, l1={0: TABLE, 1: 7 * CLUSTER}, l2={TABLE: {0: 6 * CLUSTER, 1: 7 * CLUSTER}}
    )
    made = Case(content)
    with pytest.raises(CorruptTable):
        await made.tables.find_cluster(0, 2 * CLUSTER)
    assert (await made.tables.find_cluster(0, CLUSTER)).offset == 6 * CLUSTER
    await made.tasks.drain()


async def test_find_cluster_data_on_top_of_a_new_table_is_refused() -> None:
    async with case({0: 9 * CLUSTER}) as made:
        made.put(TABLE, {0: 12345})
        with pytest.raises(CorruptTable):
            await made.tables.find_cluster(0, 1)
        made.put(TABLE, {0: 9 * CLUSTER})
        made.tables.publish({}, {1: 9 * CLUSTER})
        made.tables.forget([0])
        with pytest.raises(CorruptTable, match="on top of an L2 table"):
            await made.tables.find_cluster(0, 1)


@pytest.mark.parametrize(
    ("l1", "table_size", "shared"),
    [
        ({0: TABLE, 5: TABLE}, 1, True),
        ({0: TABLE, 5: TABLE + CLUSTER}, 1, False),
        ({0: TABLE + 4096 * 3, 5: TABLE + 4096 * 4}, 2, True),
        ({0: TABLE + 4096 * 4, 5: TABLE + 4096 * 3}, 2, True),
        ({0: TABLE + 4096 * 4, 5: TABLE + 4096 * 6}, 2, False),
    ],
)
async def test_check_own_table_that_overlaps_another_raises(
    l1: dict[int, int], table_size: int, shared: bool
) -> None:
    made = Case(image(clusters=32, table_size=table_size, l1=l1), table_size=table_size)
    if shared:
        with pytest.raises(CorruptTable):
            made.tables.check_own_table(0)
    else:
        made.tables.check_own_table(0)
        made.tables.check_own_table(10)


async def test_check_own_table_without_table_is_fine() -> None:
    async with case() as made:
        made.tables.check_own_table(7 * SPAN)
