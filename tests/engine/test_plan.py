"""What a group will write, worked out without I/O."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import pytest

from qedasync.engine.alloc_queue import AllocatingWrite
from qedasync.engine.allocator import Allocator
from qedasync.engine.l2_cache import L2Cache
from qedasync.engine.plan import Plan
from qedasync.engine.stats import Stats
from qedasync.engine.tables import Tables
from qedasync.engine.tasks import TaskOwner
from qedasync.errors import CorruptTable
from qedasync.events import Event
from qedasync.format.geometry import Geometry
from qedasync.format.table import unpack_entries
from qedasync.storage.base import Write
from qedasync.storage.memory import MemoryStorage
from tests.engine.harness import CLUSTER, SPAN

FREE = 16 * CLUSTER
"""Where the file ends."""

TABLE = 2 * CLUSTER
"""The L2 table, where there is one."""


class Case:
    """An image with a table of chosen entries, and a plan for it.

    Args:
        entries: of slice 0, by index.
        l1: by index.
    """

    def __init__(
        self,
        entries: dict[int, int] | None = None,
        *,
        l1: dict[int, int] | None = None,
        table_size: int = 1,
        copy_below: int = 0,
        zero_fills: bool = True,
    ) -> None:
        geometry = Geometry(CLUSTER, table_size, 1, CLUSTER)
        self.allocator = Allocator(geometry, FREE)
        table = array("Q", bytes(8 * geometry.table_entries))
        for index, offset in (l1 if l1 is not None else {0: TABLE}).items():
            table[index] = offset
        self.slices = {number: array("Q", bytes(4096)) for number in range(4)}
        for index, value in (entries or {}).items():
            self.slices[0][index] = value
        self.tables = Tables(
            MemoryStorage(),
            geometry,
            table,
            L2Cache(0),
            self.allocator,
            TaskOwner("test"),
            Stats(),
            guard=True,
        )
        self.plan = Plan(
            self.tables,
            self.allocator,
            self.slices,
            copy_below=copy_below,
            zero_fills=zero_fills,
        )

    def place(self, *requests: tuple[int, bytes | Sequence[bytes] | int]) -> Plan:
        """Requests as (position, data) or (position, length of zeroes)."""
        group: list[AllocatingWrite] = []
        finished: list[AllocatingWrite] = []
        for pos, what in requests:
            if isinstance(what, int):
                group.append(AllocatingWrite(pos, what, None, finished.append))
            else:
                buffers = [what] if isinstance(what, bytes) else list(what)
                group.append(AllocatingWrite(pos, sum(map(len, buffers)), buffers, finished.append))
        self.plan.place(group)
        return self.plan


def layout(writes: Iterable[Write]) -> list[tuple[int, int, Event]]:
    return [(write.offset, write.length, write.event) for write in writes]


def data(write: Write) -> bytes:
    joined = b"".join(write.buffers)
    assert len(joined) == write.length
    return joined


DATA, COW, ZEROES = Event.WRITE_AIO, Event.COW_WRITE, Event.PWRITEV_ZERO


async def test_place_whole_clusters_is_one_write_at_the_end_of_file() -> None:
    case = Case()
    plan = case.place((3 * CLUSTER, b"a" * 3 * CLUSTER))
    assert layout(plan.data) == [(FREE, 3 * CLUSTER, DATA)]
    assert plan.updates == {0: {3: FREE, 4: FREE + CLUSTER, 5: FREE + 2 * CLUSTER}}
    assert plan.n_clusters == 3
    assert plan.new_tables == {}
    assert plan.fills == []
    assert case.allocator.end_of_file == FREE + 3 * CLUSTER


async def test_place_part_of_cluster_with_zero_fills_writes_the_part_only() -> None:
    plan = Case().place((CLUSTER + 100, b"a" * 50))
    assert layout(plan.data) == [(FREE + 100, 50, DATA)]


async def test_place_part_of_cluster_without_zero_fills_writes_zeroes_around_it() -> None:
    plan = Case(zero_fills=False).place((CLUSTER + 100, b"a" * 50))
    assert sorted(layout(plan.data)) == [
        (FREE, 100, COW),
        (FREE + 100, 50, DATA),
        (FREE + 150, CLUSTER - 150, COW),
    ]
    assert all(data(w) == bytes(w.length) for w in plan.data if w.event is COW)


async def test_place_part_with_backing_fills_around_it_from_there() -> None:
    plan = Case(copy_below=10 * CLUSTER).place((CLUSTER + 100, b"a" * (CLUSTER + 50)))
    assert [(fill.pos, len(fill.buffer)) for fill in plan.fills] == [
        (CLUSTER, 100),
        (2 * CLUSTER + 150, CLUSTER - 150),
    ]
    assert sorted(layout(plan.data)) == [
        (FREE, 100, COW),
        (FREE + 100, CLUSTER + 50, DATA),
        (FREE + CLUSTER + 150, CLUSTER - 150, COW),
    ]


async def test_place_fill_is_written_from_the_buffer_that_is_read_into() -> None:
    plan = Case(copy_below=10 * CLUSTER).place((CLUSTER + 100, b"a" * (CLUSTER - 100)))
    plan.fills[0].buffer[:] = b"b" * 100
    assert sorted(map(data, plan.data)) == [b"a" * (CLUSTER - 100), b"b" * 100]


@pytest.mark.parametrize("zero_fills", [True, False])
async def test_place_fill_stops_where_the_backing_file_ends(zero_fills: bool) -> None:
    case = Case(copy_below=CLUSTER + 1000, zero_fills=zero_fills)
    plan = case.place((CLUSTER + 100, b"a" * 50))
    assert [(fill.pos, len(fill.buffer)) for fill in plan.fills] == [
        (CLUSTER, 100),
        (CLUSTER + 150, 850),
    ]
    zeroes = [] if zero_fills else [(FREE + 1000, CLUSTER - 1000, COW)]
    assert sorted(layout(plan.data))[3:] == zeroes


async def test_place_data_into_zero_cluster_fills_with_zeroes_not_backing() -> None:
    case = Case({1: 1}, copy_below=10 * CLUSTER, zero_fills=False)
    plan = case.place((CLUSTER + 100, b"a" * 50))
    assert plan.fills == []
    assert {data(w) for w in plan.data if w.event is COW} == {bytes(100), bytes(CLUSTER - 150)}


async def test_place_two_requests_of_one_cluster_share_it() -> None:
    plan = Case(copy_below=10 * CLUSTER).place((100, b"a" * 50), (200, b"b" * 50))
    assert plan.updates == {0: {0: FREE}}
    assert plan.n_clusters == 1
    assert [(fill.pos, len(fill.buffer)) for fill in plan.fills] == [(0, 100), (150, CLUSTER - 150)]
    # The second one's bytes come after the fill they replace a part of.
    order = layout(plan.data)
    assert order.index((FREE + 150, CLUSTER - 150, COW)) < order.index((FREE + 200, 50, DATA))


async def test_place_cluster_that_is_mapped_by_now_is_written_in_place() -> None:
    there = 9 * CLUSTER
    plan = Case({1: there}, copy_below=10 * CLUSTER).place((CLUSTER + 100, b"a" * 50))
    assert layout(plan.data) == [(there + 100, 50, DATA)]
    assert plan.updates == {}
    assert plan.n_clusters == 0
    assert not plan.has_new_data


async def test_place_run_over_mapped_cluster_is_cut_where_the_file_is_not_contiguous() -> None:
    plan = Case({1: 9 * CLUSTER}).place((0, [b"a" * CLUSTER, b"b" * CLUSTER, b"c" * CLUSTER]))
    assert [(w.offset, data(w)[:1]) for w in plan.data] == [
        (FREE, b"a"),
        (9 * CLUSTER, b"b"),
        (FREE + CLUSTER, b"c"),
    ]


async def test_place_mapped_neighbour_that_continues_is_joined() -> None:
    plan = Case({1: FREE - CLUSTER, 2: 0}).place((CLUSTER, b"a" * 2 * CLUSTER))
    assert layout(plan.data) == [(FREE - CLUSTER, 2 * CLUSTER, DATA)]


async def test_place_zeroes_marks_unallocated_clusters_without_clusters() -> None:
    plan = Case().place((CLUSTER, 3 * CLUSTER))
    assert plan.updates == {0: {1: 1, 2: 1, 3: 1}}
    assert plan.data == []
    assert plan.n_clusters == 0
    assert not plan.has_new_data


async def test_place_zeroes_leaves_zero_clusters_and_blanks_mapped_ones() -> None:
    plan = Case({1: 1, 2: 9 * CLUSTER}).place((CLUSTER, 2 * CLUSTER))
    assert plan.updates == {}
    assert layout(plan.data) == [(9 * CLUSTER, CLUSTER, ZEROES)]
    assert data(plan.data[0]) == bytes(CLUSTER)


async def test_place_zeroes_over_part_of_mapped_cluster_blanks_the_part() -> None:
    plan = Case({0: 9 * CLUSTER, 1: 10 * CLUSTER}).place((CLUSTER - 10, 30))
    assert layout(plan.data) == [(10 * CLUSTER - 10, 10, ZEROES), (10 * CLUSTER, 20, ZEROES)]


async def test_place_zeroes_after_data_in_one_group_blanks_the_new_cluster() -> None:
    plan = Case().place((0, b"a" * CLUSTER), (0, CLUSTER))
    assert layout(plan.data) == [(FREE, CLUSTER, DATA), (FREE, CLUSTER, ZEROES)]
    assert plan.updates == {0: {0: FREE}}


async def test_place_data_after_zeroes_in_one_group_takes_a_cluster_of_zeroes() -> None:
    plan = Case(copy_below=10 * CLUSTER).place((0, CLUSTER), (100, b"a" * 50))
    assert plan.updates == {0: {0: FREE}}
    assert plan.fills == []
    assert layout(plan.data) == [(FREE + 100, 50, DATA)]


async def test_place_large_zeroes_are_written_in_pieces() -> None:
    entries = {i: (i + 20) * CLUSTER for i in range(300)}
    case = Case(entries)
    case.allocator.end_of_file = 400 * CLUSTER
    plan = case.place((0, 300 * CLUSTER))
    assert sum(w.length for w in plan.data) == 300 * CLUSTER
    assert all(data(w) == bytes(w.length) for w in plan.data)


async def test_place_without_table_takes_one_behind_the_data() -> None:
    case = Case(l1={}, table_size=2)
    plan = case.place((CLUSTER, b"a" * CLUSTER))
    assert plan.updates == {0: {1: FREE}}
    assert plan.new_tables == {0: FREE + CLUSTER}
    assert plan.n_clusters == 3
    assert plan.has_new_data
    assert plan.l2_writes(new=False) == []


async def test_place_zeroes_without_table_takes_the_table_only() -> None:
    plan = Case(l1={}).place((CLUSTER, CLUSTER))
    assert plan.new_tables == {0: FREE}
    assert not plan.has_new_data


async def test_place_two_tables_take_one_each_and_one_l1_write() -> None:
    plan = Case(l1={}).place((SPAN - CLUSTER, b"a" * CLUSTER), (SPAN, b"b" * CLUSTER))
    assert plan.new_tables == {0: FREE + 2 * CLUSTER, 1: FREE + 3 * CLUSTER}
    (l1_write,) = plan.l1_writes()
    assert (l1_write.offset, l1_write.length, l1_write.event) == (CLUSTER, 512, Event.L1_UPDATE)
    assert list(unpack_entries(data(l1_write))[:3]) == [FREE + 2 * CLUSTER, FREE + 3 * CLUSTER, 0]


async def test_l1_writes_far_apart_are_one_for_each_sector() -> None:
    case = Case(l1={})
    case.slices[100] = array("Q", bytes(4096))
    plan = case.place((0, b"a" * CLUSTER), (100 * SPAN, b"b" * CLUSTER))
    assert [(w.offset, w.length) for w in plan.l1_writes()] == [
        (CLUSTER, 512),
        (CLUSTER + 512, 512),
    ]


async def test_l1_writes_old_content_is_what_was_there() -> None:
    case = Case(l1={1: 5 * CLUSTER})
    plan = case.place((0, b"a" * CLUSTER))
    (write,) = plan.l1_writes(old_content=True)
    assert list(unpack_entries(data(write))[:2]) == [0, 5 * CLUSTER]


async def test_l2_writes_existing_table_writes_only_sectors_that_changed() -> None:
    case = Case({64: 9 * CLUSTER})
    plan = case.place((70 * CLUSTER, b"a" * CLUSTER), (130 * CLUSTER, b"b" * CLUSTER))
    (write,) = plan.l2_writes(new=False)
    assert (write.offset, write.length) == (TABLE + 512, 2 * 512)
    assert write.event is Event.L2_UPDATE
    entries = unpack_entries(data(write))
    assert {i: e for i, e in enumerate(entries) if e} == {
        0: 9 * CLUSTER,
        70 - 64: FREE,
        130 - 64: FREE + CLUSTER,
    }


async def test_l2_writes_old_content_is_what_was_there() -> None:
    plan = Case({64: 9 * CLUSTER}).place((70 * CLUSTER, b"a" * CLUSTER))
    (write,) = plan.l2_writes(new=False, old_content=True)
    assert write.offset == TABLE + 512
    assert [e for e in unpack_entries(data(write)) if e] == [9 * CLUSTER]


async def test_l2_writes_second_slice_of_a_table_lies_behind_the_first() -> None:
    case = Case(table_size=2)
    plan = case.place((SPAN + CLUSTER, b"a" * CLUSTER))
    (write,) = plan.l2_writes(new=False)
    assert (write.offset, write.length) == (TABLE + 4096, 512)


async def test_l2_writes_new_table_is_blanked_first_without_zero_fills() -> None:
    plan = Case(l1={}, table_size=2, zero_fills=False).place((SPAN, b"a" * CLUSTER))
    table = FREE + CLUSTER
    assert layout(plan.l2_writes(new=True)) == [
        (table, 2 * CLUSTER, Event.L2_ALLOC_WRITE),
        (table + 4096, 512, Event.L2_ALLOC_WRITE),
    ]


async def test_l2_writes_keep_the_old_slices_as_they_are() -> None:
    case = Case({5: 9 * CLUSTER})
    before = {number: entries[:] for number, entries in case.slices.items()}
    plan = case.place((0, b"a" * CLUSTER))
    plan.l2_writes(new=False)
    assert case.slices == before


@pytest.mark.parametrize("entry", [5, FREE + 9 * CLUSTER, CLUSTER, 7 * CLUSTER + 512])
async def test_place_on_an_invalid_entry_raises(entry: int) -> None:
    case = Case({1: entry})
    case.tables.cache.put(0, case.slices[0], sound=False)
    with pytest.raises(CorruptTable) as caught:
        case.place((CLUSTER, b"a" * CLUSTER))
    assert (caught.value.level, caught.value.index, caught.value.value) == (2, 1, entry)
    with pytest.raises(CorruptTable):
        case.place((CLUSTER, CLUSTER))


@pytest.mark.parametrize("request_", [(0, b"a" * CLUSTER), (0, CLUSTER)], ids=["data", "zeroes"])
async def test_place_in_a_table_that_two_l1_entries_name_raises(
    request_: tuple[int, bytes | int],
) -> None:
    case = Case(l1={0: TABLE, 3: TABLE})
    with pytest.raises(CorruptTable) as caught:
        case.place(request_)
    assert (caught.value.level, caught.value.value) == (1, TABLE)
    assert case.allocator.end_of_file == FREE
