"""Metadata writes that fail: the old mapping stands, or the image says that it has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from errno import EAGAIN, EIO, ENOSPC

import pytest

from qedasync.engine.sources import RawSource
from qedasync.errors import ImageFailed, QEDError, StorageError
from qedasync.events import Event
from qedasync.storage.base import ReadBuffers, Write
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage, SparseBytes
from tests.faults.disks import SIZE, content_of, disk_on, filled, header_of, look
from tests.faults.guest import CLUSTER, SPAN, backing_value, blank, raw_backing

A, B = b"a" * CLUSTER, b"b" * CLUSTER
ZEROES = bytes(CLUSTER)


async def test_need_check_write_fails_next_allocation_sets_it_again() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)), Fault("error", op="write"))
    async with disk_on(storage) as disk:
        with pytest.raises(StorageError):
            await disk.pwrite(A, CLUSTER)
        assert not header_of(storage).need_check
        await disk.pwrite(A, CLUSTER)
        assert header_of(storage).need_check


async def test_need_check_flush_fails_no_table_is_touched() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)), Fault("error", op="flush"))
    async with disk_on(storage, fails=True) as disk:
        with pytest.raises(StorageError):
            await disk.pwrite(A, CLUSTER)
        assert storage.count(event=Event.L2_UPDATE) == 0


@pytest.mark.parametrize("action", ["error", "error-after"])
async def test_clearing_need_check_has_an_unknown_outcome_next_allocation_sets_it_again(
    action: str,
) -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    async with disk_on(storage) as disk:
        await disk.pwrite(A, CLUSTER)
        storage.add(Fault(action, event=Event.HEADER_UPDATE))  # type: ignore[arg-type]
        async with disk._engine.queue.turn:
            with pytest.raises(StorageError):
                await disk._engine.need_check.clear()
        await disk.pwrite(B, 2 * CLUSTER)
        assert header_of(storage).need_check
    assert not header_of(storage).need_check


@pytest.mark.parametrize("action", ["error", "error-after", "short", "torn"])
@pytest.mark.parametrize(
    ("event", "clusters"),
    [
        (Event.WRITE_AIO, [0]),
        (Event.L2_UPDATE, [0]),
        (Event.L2_ALLOC_WRITE, []),
        (Event.L1_UPDATE, []),
    ],
)
async def test_allocating_write_fails_old_mapping_stands_and_later_writes_survive(
    action: str, event: Event, clusters: Sequence[int]
) -> None:
    storage = FaultStorage(MemoryStorage(await filled(*clusters)))
    async with disk_on(storage) as disk:
        storage.add(Fault(action, event=event))  # type: ignore[arg-type]
        with pytest.raises(StorageError) as caught:
            await disk.pwrite(A, 5 * CLUSTER)
        assert caught.value.errno == EIO
        assert await disk.pread(CLUSTER, 5 * CLUSTER) == ZEROES
        await disk.pwrite(b"later", 5 * CLUSTER + 100)
    expected = bytes(100) + b"later" + bytes(CLUSTER - 105)
    assert await look(content_of(storage), CLUSTER, 5 * CLUSTER) == expected


@pytest.mark.parametrize("event", [Event.L2_UPDATE, Event.L1_UPDATE])
async def test_undoing_a_metadata_write_fails_image_refuses_writes_and_reads_go_on(
    event: Event,
) -> None:
    storage = FaultStorage(MemoryStorage(await filled(*([0] if event is Event.L2_UPDATE else []))))
    before = b"\1" * CLUSTER if event is Event.L2_UPDATE else ZEROES
    async with disk_on(storage, fails=True) as disk:
        storage.add(Fault("error", event=event, once=False, errno=ENOSPC))
        with pytest.raises(StorageError):
            await disk.pwrite(A, 5 * CLUSTER)
        storage.clear()
        for request in (disk.pwrite(B, 0), disk.pwrite(B, 9 * CLUSTER), disk.flush()):
            with pytest.raises(ImageFailed) as caught:
                await request
            assert caught.value.errno == ENOSPC
        assert await disk.pread(CLUSTER, 0) == before
    assert header_of(storage).need_check
    assert await look(content_of(storage), CLUSTER, 0) == before


async def test_failed_image_check_at_next_open_makes_it_usable_again() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    async with disk_on(storage, fails=True) as disk:
        storage.add(Fault("error", event=Event.L2_UPDATE, once=False))
        with pytest.raises(StorageError):
            await disk.pwrite(A, 5 * CLUSTER)
    async with disk_on(MemoryStorage(content_of(storage))) as disk:
        await disk.pwrite(B, 5 * CLUSTER)
        await disk.flush()
    assert await look(content_of(storage), CLUSTER, 5 * CLUSTER) == B


async def test_group_with_one_bad_request_others_succeed() -> None:
    """The first attempt fails at its first write; alone, the second request fails."""
    storage = FaultStorage(MemoryStorage(await filled(0), inline=False))
    async with disk_on(storage) as disk:
        storage.add(*(Fault("error", event=Event.WRITE_AIO, call=nth) for nth in (1, 3)))
        requests = [disk.pwrite(bytes([i]) * CLUSTER, i * CLUSTER) for i in range(2, 8)]
        results = await asyncio.gather(*requests, return_exceptions=True)
        failed = [i for i, result in enumerate(results, 2) if isinstance(result, StorageError)]
        assert failed == [3]
    assert await look(content_of(storage), CLUSTER, 3 * CLUSTER) == ZEROES
    assert await look(content_of(storage), CLUSTER, 7 * CLUSTER) == b"\7" * CLUSTER


async def test_backing_sector_unreadable_only_writes_that_need_it_fail() -> None:
    base = FaultStorage(MemoryStorage(raw_backing(SIZE)), Fault("error", op="read", once=False))
    storage = MemoryStorage(await filled(0, backing="base.raw"), inline=False)
    async with disk_on(storage, source=RawSource(base, "base.raw")) as disk:
        results = await asyncio.gather(
            disk.pwrite(A, 2 * CLUSTER),
            disk.pwrite(b"part", 3 * CLUSTER),
            disk.pwrite(B, 4 * CLUSTER),
            return_exceptions=True,
        )
        assert [isinstance(result, QEDError) for result in results] == [False, True, False]
        base.clear()
        assert await disk.pread(1, 3 * CLUSTER) == bytes([backing_value(3 * CLUSTER)])
        assert await disk.pread(CLUSTER, 2 * CLUSTER) == A
        assert await disk.pread(CLUSTER, 4 * CLUSTER) == B


async def test_host_eagain_is_an_error_never_success() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0, 1)))
    async with disk_on(storage) as disk:
        for event, request in (
            (Event.READ_AIO, disk.pread(CLUSTER, 0)),
            (Event.WRITE_AIO, disk.pwrite(A, 0)),
            (Event.WRITE_AIO, disk.pwrite(A, 5 * CLUSTER)),
            (Event.L2_UPDATE, disk.pwrite(A, 6 * CLUSTER)),
            (Event.PWRITEV_ZERO, disk.write_zeroes(CLUSTER, CLUSTER)),
        ):
            storage.add(Fault("error", event=event, errno=EAGAIN))
            with pytest.raises(StorageError) as caught:
                await request
            assert caught.value.errno == EAGAIN
        assert await disk.pread(2 * CLUSTER, 0) == b"\1" * CLUSTER + b"\2" * CLUSTER
        assert await disk.pread(2 * CLUSTER, 5 * CLUSTER) == bytes(2 * CLUSTER)


async def test_slice_load_fails_every_waiter_hears_of_it_and_the_next_read_loads_again() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0, 1), inline=False))
    async with disk_on(storage) as disk:
        storage.add(Fault("error", event=Event.L2_LOAD))
        results = await asyncio.gather(
            disk.pread(512, 0), disk.pread(512, CLUSTER), return_exceptions=True
        )
        assert all(isinstance(result, StorageError) for result in results)
        assert storage.count(event=Event.L2_LOAD) == 1
        assert await disk.pread(512, CLUSTER) == b"\2" * 512


async def test_grow_header_write_fails_size_stays_and_reopen_shows_old_or_new() -> None:
    storage = FaultStorage(MemoryStorage(await filled(0)))
    async with disk_on(storage) as disk:
        storage.add(Fault("error", event=Event.HEADER_UPDATE))
        with pytest.raises(StorageError):
            await disk.truncate(2 * SIZE)
        assert disk.size == SIZE
        assert header_of(storage).image_size == SIZE
        await disk.truncate(2 * SIZE)
        await disk.pwrite(A, 2 * SIZE - CLUSTER)
    assert await look(content_of(storage), CLUSTER, 2 * SIZE - CLUSTER) == A


async def test_overlay_last_cluster_holds_zeroes_past_the_end_not_what_is_below() -> None:
    size = SIZE - CLUSTER // 2
    storage = MemoryStorage(await filled(size=size, backing="base.raw"))
    base = RawSource(MemoryStorage(raw_backing(SIZE)), "base.raw")
    async with disk_on(storage, source=base) as disk:
        await disk.pwrite(b"x" * 512, SIZE - CLUSTER)
        [run] = await disk.block_status(SIZE - CLUSTER, CLUSTER // 2)
        assert run.offset is not None
        cluster = storage.snapshot()[run.offset : run.offset + CLUSTER]
        assert cluster[512:513] == bytes([backing_value(SIZE - CLUSTER)])
        assert cluster[CLUSTER // 2 :] == bytes(CLUSTER // 2)


class LateLoads(MemoryStorage):
    """Loads of L2 tables have read the file, and still come back late."""

    def __init__(self, content: SparseBytes) -> None:
        super().__init__(content, inline=False)
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.late = asyncio.Event()

    async def read_into(
        self, buffers: ReadBuffers, offset: int, event: Event = Event.READ_AIO
    ) -> None:
        await super().read_into(buffers, offset, event)
        if event is Event.L2_LOAD and not self.go_on.is_set():
            self.late.set()
            await self.go_on.wait()


async def test_slice_read_just_before_a_commit_wrote_it_is_read_again() -> None:
    inner = LateLoads(await filled(*range(0, 7 * 512, 512), size=7 * SPAN))
    storage = FaultStorage(inner)
    async with disk_on(storage, l2_cache_size=CLUSTER) as disk:
        storage.add(Fault("pause", event=Event.L2_UPDATE))
        write = asyncio.create_task(disk.pwrite(A, 5 * CLUSTER))
        await storage.wait_paused()
        for table in range(1, 7):
            await disk.pread(512, table * SPAN)
        assert 0 not in list(disk._engine.tables.cache), "other slices have taken its place"
        inner.go_on.clear()
        read = asyncio.create_task(disk.pread(512, 0))
        await inner.late.wait()
        storage.resume()
        await write
        inner.go_on.set()
        assert await read == b"\1" * 512
        assert await disk.pread(CLUSTER, 5 * CLUSTER) == A


class Careless(MemoryStorage):
    """A user's own storage that raises what it should not: a plain exception."""

    careless = False

    async def write_many(self, writes: Sequence[Write], *, grow_to: int = 0) -> None:
        await super().write_many(writes, grow_to=grow_to)
        if self.careless:
            raise RuntimeError("a bug in a storage")


async def test_storage_with_a_bug_outcome_is_unknown_so_the_image_fails() -> None:
    storage = Careless(await filled(0))
    async with disk_on(storage, fails=True) as disk:
        storage.careless = True
        with pytest.raises(ImageFailed):
            await disk.pwrite(A, 5 * CLUSTER)
        storage.careless = False
        with pytest.raises(ImageFailed):
            await disk.pwrite(A, 6 * CLUSTER)
        assert await disk.pread(CLUSTER, 0) == b"\1" * CLUSTER
    assert header_of(storage).need_check


async def test_blank_disk_of_this_suite_is_what_it_seems() -> None:
    assert await look(blank(SIZE), SIZE, 0) == bytes(SIZE)
