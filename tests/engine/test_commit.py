"""In which order a group reaches the disk, and what a failing step leaves.

The orders are those of QEMU's driver (dossier §7.4) where it is right, and stricter where it is
not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qedasync.engine.core import Engine
from qedasync.engine.source import Source
from qedasync.errors import ImageFailed, StorageError
from qedasync.events import Event
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import RecorderStorage
from tests.engine.harness import (
    CLUSTER,
    SPAN,
    Bytes,
    image,
    l1_entries,
    opened,
    slice_entries,
    steps,
)

DATA = b"d" * CLUSTER


@asynccontextmanager
async def recorded(
    content: bytes, backing: Source | None = None
) -> AsyncIterator[tuple[Engine, RecorderStorage]]:
    storage = RecorderStorage(MemoryStorage(content))
    async with opened(storage, backing=backing) as engine:
        yield engine, storage


async def write(engine: Engine, data: bytes, pos: int) -> None:
    await engine.write([data], pos, len(data))


# ----------------------------------------------------------------------- order


async def test_commit_new_table_without_backing_order() -> None:
    async with recorded(image()) as (engine, storage):
        await write(engine, DATA, 0)
        assert steps(storage) == [
            "header_update",
            "flush",
            "grow",
            "write_aio",
            "l2_alloc_write",
            "flush",
            "l1_update",
        ]
        assert engine.header.need_check


async def test_commit_existing_table_without_backing_needs_no_flush() -> None:
    async with recorded(image()) as (engine, storage):
        await write(engine, DATA, 0)
        start = len(storage.log)
        await write(engine, DATA, 2 * CLUSTER)
        assert steps(storage, start) == ["grow", "write_aio", "l2_update"]


async def test_commit_first_of_a_busy_period_flushes_need_check_before_l2() -> None:
    content = image(clusters=3, l1={0: 2 * CLUSTER})
    async with recorded(content) as (engine, storage):
        await write(engine, DATA, 0)
        assert steps(storage) == ["header_update", "flush", "grow", "write_aio", "l2_update"]


async def test_commit_existing_table_with_backing_flushes_data_before_l2() -> None:
    content = image(clusters=3, l1={0: 2 * CLUSTER})
    async with recorded(content, Bytes(bytes(SPAN))) as (engine, storage):
        await write(engine, b"part", 100)
        assert steps(storage) == [
            "grow",
            "cow_write",
            "write_aio",
            "cow_write",
            "flush",
            "l2_update",
        ]
        assert not engine.header.need_check


async def test_commit_new_table_with_backing_takes_one_flush() -> None:
    async with recorded(image(), Bytes(bytes(SPAN))) as (engine, storage):
        await write(engine, DATA, 0)
        assert steps(storage) == ["grow", "write_aio", "l2_alloc_write", "flush", "l1_update"]


async def test_commit_zeroes_with_backing_needs_no_flush() -> None:
    content = image(clusters=3, l1={0: 2 * CLUSTER})
    async with recorded(content, Bytes(bytes(SPAN))) as (engine, storage):
        await engine.write_zeroes(0, CLUSTER)
        assert steps(storage) == ["l2_update"]


async def test_commit_whole_cluster_with_backing_reads_nothing_from_it() -> None:
    backing = Bytes(bytes(SPAN))
    async with recorded(image(), backing) as (engine, _):
        await write(engine, DATA, CLUSTER)
        assert backing.reads == []


async def test_commit_group_over_tables_flushes_once_for_all() -> None:
    async with recorded(image()) as (engine, storage):
        await asyncio.gather(write(engine, DATA, 0), write(engine, DATA, SPAN))
        assert steps(storage).count("flush") == 2  # NEED_CHECK, and before the L1 entries
        assert engine.stats.groups == 1
        assert engine.stats.grouped_writes == 2
        assert engine.stats.clusters_allocated == 4


async def test_commit_flushes_off_orders_without_flushing() -> None:
    storage = RecorderStorage(MemoryStorage(image()))
    async with opened(storage, flushes=False) as engine:
        await write(engine, DATA, 0)
        assert "flush" not in steps(storage)


# ----------------------------------------------------------------------- layout


async def test_commit_layout_is_data_then_table() -> None:
    async with recorded(image(table_size=2)) as (engine, storage):
        await write(engine, DATA, CLUSTER)
        assert (await l1_entries(storage))[0] == 4 * CLUSTER
        assert (await slice_entries(storage, 4 * CLUSTER))[:3] == [0, 3 * CLUSTER, 0]
        assert storage.size == 6 * CLUSTER


async def test_commit_partial_last_cluster_of_the_file_is_cut_off_first() -> None:
    content = image() + b"\xee" * 1000
    async with recorded(content) as (engine, storage):
        await write(engine, b"part", 100)
        read = await engine.read(CLUSTER, 0)
        assert read == (bytes(100) + b"part").ljust(CLUSTER, b"\0")
        assert steps(storage)[0] == "truncate"


async def test_commit_backing_read_that_waits_is_waited_for() -> None:
    backing = Bytes(b"b" * SPAN, inline=False)
    async with recorded(image(), backing) as (engine, _):
        await write(engine, b"part", CLUSTER + 100)
        assert sorted(backing.reads) == [(CLUSTER, 100), (CLUSTER + 104, CLUSTER - 104)]
        expected = (b"b" * 100 + b"part").ljust(CLUSTER, b"b")
        assert await engine.read(CLUSTER, CLUSTER) == expected


async def test_commit_backing_beyond_the_images_end_is_not_copied() -> None:
    async with recorded(image(CLUSTER + 512), Bytes(b"b" * SPAN)) as (engine, storage):
        await write(engine, b"x", CLUSTER)
        (offset,) = [e for e in await slice_entries(storage, 3 * CLUSTER) if e > 1]
        end = bytearray(CLUSTER - 512)
        await storage.read_into([end], offset + 512)
        assert end == bytes(CLUSTER - 512)


# ----------------------------------------------------------------------- faults


@asynccontextmanager
async def failing(
    content: bytes, *faults: Fault, backing: Source | None = None
) -> AsyncIterator[tuple[Engine, FaultStorage, MemoryStorage]]:
    memory = MemoryStorage(content)
    storage = FaultStorage(memory)
    async with opened(storage, backing=backing) as engine:
        storage.add(*faults)
        yield engine, storage, memory


@pytest.mark.parametrize(
    "event",
    [
        Event.HEADER_UPDATE,
        Event.CLUSTER_ALLOC,
        Event.WRITE_AIO,
        Event.L2_ALLOC_WRITE,
        Event.L1_UPDATE,
    ],
)
async def test_commit_failing_step_keeps_the_old_mapping_and_a_retry_works(event: Event) -> None:
    async with failing(image(), Fault("error", event=event)) as (engine, _, memory):
        with pytest.raises(StorageError) as caught:
            await write(engine, DATA, 0)
        assert caught.value.errno == 5
        assert await engine.read(CLUSTER, 0) == bytes(CLUSTER)
        assert (await l1_entries(memory))[0] == 0
        await write(engine, DATA, 0)
        assert await engine.read(CLUSTER, 0) == DATA
        assert engine.failure is None


async def test_commit_failing_l2_update_puts_the_old_entries_back() -> None:
    table = 2 * CLUSTER
    content = image(clusters=3, l1={0: table})
    fault = Fault("error-after", event=Event.L2_UPDATE)
    async with failing(content, fault) as (engine, storage, memory):
        with pytest.raises(StorageError):
            await write(engine, DATA, 0)
        assert storage.count(event=Event.L2_UPDATE) == 2
        assert await slice_entries(memory, table) == [0] * 8
        assert await engine.read(CLUSTER, 0) == bytes(CLUSTER)
        assert engine.failure is None


async def test_commit_failing_undo_fails_the_image_for_writes_only() -> None:
    content = image(clusters=3, l1={0: 2 * CLUSTER})
    fault = Fault("error", event=Event.L2_UPDATE, once=False)
    async with failing(content, fault) as (engine, storage, memory):
        with pytest.raises(StorageError):
            await write(engine, DATA, 0)
        storage.clear()
        with pytest.raises(ImageFailed) as caught:
            await write(engine, DATA, 0)
        assert caught.value.errno == 5
        with pytest.raises(ImageFailed):
            await engine.flush()
        assert await engine.read(CLUSTER, 0) == bytes(CLUSTER)
        with pytest.raises(ImageFailed):
            await engine.close()
        assert memory.snapshot()[16] & 2, "NEED_CHECK stays"


async def test_commit_failing_flush_fails_the_image() -> None:
    fault = Fault("error", op="flush", call=2)
    async with failing(image(), fault) as (engine, _, memory):
        with pytest.raises(StorageError):
            await write(engine, DATA, 0)
        assert engine.failure is not None
        assert (await l1_entries(memory))[0] == 0
        with pytest.raises(ImageFailed):
            await engine.close()


async def test_commit_failing_member_fails_alone() -> None:
    content = image(clusters=3, l1={0: 2 * CLUSTER})
    backing = Bytes(b"b" * SPAN)
    # The group, then one by one: the second of the three writes of its own meets the error.
    faults = (
        Fault("error", event=Event.WRITE_AIO, call=1),
        Fault("error", event=Event.WRITE_AIO, call=2),
    )
    async with failing(content, *faults, backing=backing) as (engine, _, _):
        results = await asyncio.gather(
            *(write(engine, DATA, pos * CLUSTER) for pos in range(3)), return_exceptions=True
        )
        failed = [isinstance(result, StorageError) for result in results]
        assert sum(failed) == 1
        for pos, bad in enumerate(failed):
            expected = b"b" * CLUSTER if bad else DATA
            assert await engine.read(CLUSTER, pos * CLUSTER) == expected


async def test_commit_backing_read_error_leaves_the_backing_content() -> None:
    class Broken(Bytes):
        async def read_into(self, buffers: object, pos: int) -> None:
            raise StorageError(5, offset=pos)

    backing = Broken(b"b" * SPAN, inline=False)
    async with failing(image(), backing=backing) as (engine, storage, _):
        with pytest.raises(StorageError):
            await write(engine, b"part", 10)
        assert storage.count("write") == 0


async def test_commit_undone_entry_was_never_seen_by_a_write_in_place() -> None:
    """Between an L2 write and its undoing, a slice read from disk would show the new entry."""
    table = 2 * CLUSTER
    content = image(4 * SPAN, clusters=6, l1={i: table + i * CLUSTER for i in range(4)})
    memory = MemoryStorage(content)
    storage = FaultStorage(memory)
    async with opened(storage, l2_cache_bytes=0) as engine:
        storage.add(
            Fault("pause", event=Event.L2_UPDATE, call=2),
            Fault("error", event=Event.L2_UPDATE, call=2),
        )
        group = asyncio.gather(
            write(engine, DATA, 0), write(engine, DATA, SPAN), return_exceptions=True
        )
        await storage.wait_paused()  # the entry of the first is on disk
        for number in range(2, 4):  # the cache is tiny: these push its slice out
            await engine.read(1, number * SPAN)
            engine.cache.discard(0)
        in_place = asyncio.create_task(write(engine, b"i" * CLUSTER, 0))
        for _ in range(50):
            await asyncio.sleep(0)
        storage.resume()
        await asyncio.gather(group, in_place)
        assert await engine.read(CLUSTER, 0) == b"i" * CLUSTER
    async with opened(memory.copy()) as again:
        assert await again.read(CLUSTER, 0) == b"i" * CLUSTER
