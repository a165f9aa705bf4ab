"""Writes: in place where there is a cluster, through the queue where there is none."""

from __future__ import annotations

import asyncio

import pytest

from qedasync.engine.core import Engine
from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import RecorderStorage
from tests.engine.harness import (
    CLUSTER,
    SPAN,
    Bytes,
    image,
    opened,
    slice_entries,
    steps,
    turns,
)

TABLE = 2 * CLUSTER


def one_table(entries: dict[int, int], size: int = 2 * SPAN) -> bytes:
    """Cluster 4 and those behind it hold 0xdd."""
    made = bytearray(image(size, clusters=12, l1={0: TABLE}, l2={TABLE: entries}))
    made[4 * CLUSTER :] = b"\xdd" * (8 * CLUSTER)
    return bytes(made)


async def write(engine: Engine, data: bytes, pos: int) -> None:
    await engine.write([data], pos, len(data))


async def test_write_mapped_goes_in_place_without_metadata() -> None:
    storage = RecorderStorage(MemoryStorage(one_table({0: 4 * CLUSTER, 1: 5 * CLUSTER})))
    async with opened(storage) as engine:
        await write(engine, b"new" * 2000, 100)  # over two clusters: not the short way
        await write(engine, b"short", 5)
        assert steps(storage) == ["write_aio"]
        assert not engine.header.need_check
        assert engine.stats.groups == 0
        expected = bytearray(b"\xdd" * 2 * CLUSTER)
        expected[100:6100] = b"new" * 2000
        expected[5:10] = b"short"
        assert await engine.read(2 * CLUSTER, 0) == expected


async def test_write_in_place_does_not_wait_for_the_turn() -> None:
    async with opened(one_table({0: 4 * CLUSTER})) as engine, engine.queue.turn:
        await write(engine, b"x", 0)
        await engine.write_zeroes(1, 5)
        await engine.discard(0, CLUSTER)


async def test_write_buffers_are_cut_at_runs() -> None:
    async with opened(one_table({1: 5 * CLUSTER})) as engine:
        buffers = [b"a" * 3000, b"b" * 5000, b"c" * 4000]
        await engine.write(buffers, 100, 12000)
        assert await engine.read(12000, 100) == b"".join(buffers)


async def test_write_across_tables_makes_both() -> None:
    async with opened(image()) as engine:
        await write(engine, b"x" * 300, SPAN - 150)
        assert await engine.read(302, SPAN - 151) == b"\0" + b"x" * 300 + b"\0"
        assert engine.stats.groups == 2


async def test_write_failing_run_leaves_the_earlier_ones() -> None:
    storage = FaultStorage(MemoryStorage(one_table({0: 4 * CLUSTER, 1: 9 * CLUSTER})))
    async with opened(storage) as engine:
        storage.add(Fault("error", event=Event.WRITE_AIO, call=2))
        with pytest.raises(StorageError):
            await write(engine, b"n" * 2 * CLUSTER, 0)
        assert await engine.read(2 * CLUSTER, 0) == b"n" * CLUSTER + b"\xdd" * CLUSTER
        assert engine.failure is None


# ------------------------------------------------------------------- write zeroes


async def test_write_zeroes_whole_unallocated_clusters_take_no_space() -> None:
    storage = MemoryStorage(one_table({}))
    async with opened(storage, backing=Bytes(b"B" * SPAN)) as engine:
        await engine.write_zeroes(CLUSTER, 3 * CLUSTER)
        assert (await slice_entries(storage, TABLE))[:5] == [0, 1, 1, 1, 0]
        assert await engine.read(3 * CLUSTER, CLUSTER) == bytes(3 * CLUSTER)
        assert storage.size == 12 * CLUSTER


async def test_write_zeroes_mapped_keeps_the_cluster() -> None:
    storage = MemoryStorage(one_table({0: 4 * CLUSTER}))
    async with opened(storage) as engine:
        await engine.write_zeroes(10, 100)
        assert (await slice_entries(storage, TABLE))[0] == 4 * CLUSTER
        assert await engine.read(120, 0) == b"\xdd" * 10 + bytes(100) + b"\xdd" * 10


async def test_write_zeroes_zero_cluster_does_nothing() -> None:
    storage = FaultStorage(MemoryStorage(one_table({0: 1})))
    async with opened(storage) as engine:
        await engine.write_zeroes(0, CLUSTER)
        assert storage.count("write") == 0


async def test_write_zeroes_ragged_over_backing_zeroes_exactly_that() -> None:
    async with opened(one_table({}), backing=Bytes(b"B" * SPAN)) as engine:
        start, length = CLUSTER - 100, 2 * CLUSTER + 300
        await engine.write_zeroes(start, length)
        around = await engine.read(length + 20, start - 10)
        assert around == b"B" * 10 + bytes(length) + b"B" * 10


async def test_write_zeroes_ragged_without_backing_allocates_nothing() -> None:
    storage = MemoryStorage(one_table({}))
    async with opened(storage) as engine:
        await engine.write_zeroes(CLUSTER - 100, 300)
        assert storage.size == 12 * CLUSTER
        assert (await slice_entries(storage, TABLE))[:3] == [1, 1, 0]


async def test_write_zeroes_ragged_past_the_end_of_backing_allocates_nothing() -> None:
    storage = MemoryStorage(one_table({}))
    async with opened(storage, backing=Bytes(b"B" * CLUSTER)) as engine:
        await engine.write_zeroes(CLUSTER + 100, 100)
        assert storage.size == 12 * CLUSTER


async def test_write_zeroes_to_the_images_end_covers_its_last_part_cluster() -> None:
    storage = MemoryStorage(one_table({}, size=CLUSTER + 512))
    async with opened(storage, backing=Bytes(b"B" * SPAN)) as engine:
        await engine.write_zeroes(0, CLUSTER + 512)
        assert (await slice_entries(storage, TABLE))[:3] == [1, 1, 0]


async def test_write_zeroes_part_of_the_last_part_cluster_does_not_cover_it() -> None:
    async with opened(one_table({}, size=1024), backing=Bytes(b"B" * SPAN)) as engine:
        await engine.write_zeroes(512, 512)
        assert await engine.read(1024, 0) == b"B" * 512 + bytes(512)
        await engine.write_zeroes(0, 100)
        assert await engine.read(1024, 0) == bytes(100) + b"B" * 412 + bytes(512)


async def test_write_zeroes_across_tables_marks_both() -> None:
    async with opened(image(), backing=Bytes(b"B" * 2 * SPAN)) as engine:
        await engine.write_zeroes(SPAN - CLUSTER, 2 * CLUSTER)
        assert await engine.read(2 * CLUSTER, SPAN - CLUSTER) == bytes(2 * CLUSTER)


async def test_write_zeroes_large_is_done_without_writing_them() -> None:
    storage = FaultStorage(MemoryStorage(image(64 * SPAN)))
    async with opened(storage) as engine:
        await engine.write_zeroes(0, 64 * SPAN)
        assert sum(c.length or 0 for c in storage.calls if c.op == "write") < 64 * 8192
        assert await engine.read(SPAN, 31 * SPAN) == bytes(SPAN)


async def test_write_zeroes_that_meets_a_new_cluster_in_the_queue_zeroes_it() -> None:
    storage = FaultStorage(MemoryStorage(one_table({})))
    async with opened(storage) as engine:
        async with engine.queue.turn:
            data = asyncio.create_task(write(engine, b"d" * CLUSTER, 0))
            await turns()
            zeroes = asyncio.create_task(engine.write_zeroes(0, 100))
            await turns()
        await asyncio.gather(data, zeroes)
        assert await engine.read(200, 0) == bytes(100) + b"d" * 100


# ----------------------------------------------------------------------- discard


async def test_discard_zeroes_whole_mapped_clusters_only() -> None:
    entries = {i: (4 + i) * CLUSTER for i in range(4)}
    storage = MemoryStorage(one_table(entries))
    async with opened(storage) as engine:
        await engine.discard(100, 3 * CLUSTER)
        expected = b"\xdd" * CLUSTER + bytes(2 * CLUSTER) + b"\xdd" * CLUSTER
        assert await engine.read(4 * CLUSTER, 0) == expected
        assert (await slice_entries(storage, TABLE))[:4] == list(entries.values())


async def test_discard_to_the_images_end_covers_its_last_part_cluster() -> None:
    async with opened(one_table({0: 4 * CLUSTER}, size=512)) as engine:
        await engine.discard(0, 512)
        assert await engine.read(512, 0) == bytes(512)


@pytest.mark.parametrize(("start", "length"), [(1, CLUSTER), (10, 20), (CLUSTER - 1, 2)])
async def test_discard_no_whole_cluster_does_nothing(start: int, length: int) -> None:
    storage = FaultStorage(MemoryStorage(one_table({0: 4 * CLUSTER, 1: 5 * CLUSTER})))
    async with opened(storage) as engine:
        await engine.discard(start, length)
        assert storage.count("write_zeroes") == 0


async def test_discard_unallocated_and_zero_clusters_stay_as_they_are() -> None:
    storage = FaultStorage(MemoryStorage(one_table({0: 1})))
    async with opened(storage, backing=Bytes(b"B" * SPAN)) as engine:
        await engine.discard(0, 4 * CLUSTER)
        assert storage.count("write") == storage.count("write_zeroes") == 0
        assert await engine.read(2 * CLUSTER, 0) == bytes(CLUSTER) + b"B" * CLUSTER
