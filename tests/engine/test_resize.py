"""Growing: zeroes first, durable, and only then the size."""

from __future__ import annotations

import asyncio

import pytest

from qedasync.errors import RequestError, StorageError
from qedasync.events import Event
from qedasync.format.header import Header
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import RecorderStorage
from tests.engine.harness import CLUSTER, SPAN, Bytes, image, opened, slice_entries, steps, turns

TABLE = 2 * CLUSTER


def on_disk(storage: MemoryStorage) -> int:
    return Header.parse(storage.snapshot()).image_size


async def test_grow_empty_image_writes_the_header_only() -> None:
    storage = RecorderStorage(MemoryStorage(image(512)))
    async with opened(storage) as engine:
        await engine.grow(100 * SPAN)
        assert engine.image_size == 100 * SPAN
        assert steps(storage) == ["flush", "header_update", "flush"]
        assert await engine.read(10, 99 * SPAN) == bytes(10)


async def test_grow_stale_bytes_behind_the_old_end_are_zeroed_first() -> None:
    content = bytearray(image(512, clusters=4, l1={0: TABLE}, l2={TABLE: {0: 3 * CLUSTER}}))
    content[3 * CLUSTER :] = b"\xdd" * CLUSTER
    storage = RecorderStorage(MemoryStorage(bytes(content)))
    async with opened(storage) as engine:
        await engine.grow(1024)
        assert await engine.read(1024, 0) == b"\xdd" * 512 + bytes(512)
        assert steps(storage) == ["pwritev_zero", "flush", "header_update", "flush"]
        await engine.grow(CLUSTER)
        assert await engine.read(CLUSTER, 0) == b"\xdd" * 512 + bytes(CLUSTER - 512)


@pytest.mark.parametrize("size", [0, 512, CLUSTER, CLUSTER + 512, 3 * CLUSTER + 1024])
@pytest.mark.parametrize("below", [0, 700, CLUSTER, 2 * CLUSTER + 7, SPAN + 99, 3 * SPAN])
async def test_grow_over_backing_never_shows_it(size: int, below: int) -> None:
    async with opened(image(size), backing=Bytes(b"B" * below)) as engine:
        new_size = 2 * SPAN + 1536
        await engine.grow(new_size)
        seen = b"B" * min(size, below)
        assert await engine.read(new_size, 0) == seen.ljust(new_size, b"\0")


async def test_grow_over_backing_marks_whole_clusters_without_space() -> None:
    storage = MemoryStorage(image(CLUSTER, clusters=3, l1={0: TABLE}))
    async with opened(storage, backing=Bytes(b"B" * 4 * CLUSTER)) as engine:
        await engine.grow(8 * CLUSTER)
        assert await slice_entries(storage, TABLE, 6) == [0, 1, 1, 1, 0, 0]
        assert storage.size == 3 * CLUSTER


async def test_grow_needs_more_of_l1_loads_it() -> None:
    # An earlier, larger image left a table behind.
    content = image(SPAN, clusters=4, l1={100: TABLE}, l2={TABLE: {0: 3 * CLUSTER}})
    content = content[: 3 * CLUSTER] + b"\xdd" * CLUSTER
    async with opened(content) as engine:
        await engine.grow(101 * SPAN)
        assert await engine.read(CLUSTER, 100 * SPAN) == bytes(CLUSTER)
        await engine.write([b"x"], 100 * SPAN, 1)
        assert await engine.read(2, 100 * SPAN) == b"x\0"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", event=Event.L1_LOAD),
        Fault("error", event=Event.PWRITEV_ZERO),
        Fault("error", event=Event.HEADER_UPDATE),
    ],
    ids=lambda fault: str(fault.event),
)
async def test_grow_failing_step_keeps_the_old_size(fault: Fault) -> None:
    content = image(512, clusters=4, l1={0: TABLE}, l2={TABLE: {0: 3 * CLUSTER}})
    memory = MemoryStorage(content)
    storage = FaultStorage(memory)
    async with opened(storage) as engine:
        storage.add(fault)
        with pytest.raises(StorageError):
            await engine.grow(SPAN)
        assert engine.image_size == on_disk(memory) == 512
        await engine.grow(SPAN)
        assert engine.image_size == on_disk(memory) == SPAN


async def test_grow_twice_at_once_never_shrinks() -> None:
    memory = MemoryStorage(image(512), inline=False)
    async with opened(memory) as engine:
        results = await asyncio.gather(
            engine.grow(20 * CLUSTER), engine.grow(10 * CLUSTER), return_exceptions=True
        )
        assert results[0] is None
        assert isinstance(results[1], RequestError)
        assert engine.image_size == on_disk(memory) == 20 * CLUSTER


async def test_grow_twice_to_the_same_size_is_fine() -> None:
    memory = MemoryStorage(image(512), inline=False)
    async with opened(memory) as engine:
        await asyncio.gather(engine.grow(20 * CLUSTER), engine.grow(20 * CLUSTER))
        assert engine.image_size == on_disk(memory) == 20 * CLUSTER


async def test_grow_requests_meanwhile_go_on_and_are_kept() -> None:
    storage = FaultStorage(MemoryStorage(image(CLUSTER + 512)))
    async with opened(storage, backing=Bytes(b"B" * SPAN)) as engine:
        storage.add(Fault("pause", event=Event.HEADER_UPDATE))
        growing = asyncio.create_task(engine.grow(SPAN))
        await storage.wait_paused()
        assert await engine.read(4, CLUSTER) == b"BBBB"
        writing = asyncio.create_task(engine.write([b"x" * 512], CLUSTER, 512))
        await turns()
        storage.resume()
        await asyncio.gather(growing, writing)
        assert await engine.read(1024, CLUSTER) == b"x" * 512 + bytes(512)
