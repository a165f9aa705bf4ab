"""Reads, run by run: from clusters, zeroes, and the backing file up to its end."""

from __future__ import annotations

import asyncio

import pytest

from qedasync.errors import CorruptTable, StorageError
from qedasync.events import Event
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from tests.engine.harness import CLUSTER, SPAN, Bytes, image, opened, turns

TABLE = 2 * CLUSTER


def content(entries: dict[int, int], size: int = 2 * SPAN) -> bytes:
    """Clusters 4, 5, 6 ... of the file hold that number's letter."""
    made = bytearray(image(size, clusters=12, l1={0: TABLE}, l2={TABLE: entries}))
    for number in range(4, 12):
        made[number * CLUSTER : (number + 1) * CLUSTER] = letter(number) * CLUSTER
    return bytes(made)


def letter(number: int) -> bytes:
    return bytes([ord("a") + number])


MIXED = {0: 4 * CLUSTER, 1: 5 * CLUSTER, 2: 1, 4: 9 * CLUSTER, 5: 7 * CLUSTER}
"""Two clusters in a row, ZERO, unallocated, two that are not in a row."""

MIXED_DATA = (
    letter(4) * CLUSTER
    + letter(5) * CLUSTER
    + bytes(CLUSTER)
    + b"B" * CLUSTER
    + letter(9) * CLUSTER
    + letter(7) * CLUSTER
)


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize(("start", "length"), [(0, 6 * CLUSTER), (100, 5 * CLUSTER), (9000, 5000)])
async def test_read_into_mixed_runs_joins_them(inline: bool, start: int, length: int) -> None:
    storage = MemoryStorage(content(MIXED), inline=inline)
    async with opened(storage, backing=Bytes(b"B" * 2 * SPAN, inline=inline)) as engine:
        buffers = [bytearray(3), bytearray(length - 3)]
        await engine.read_into(buffers, start, length)
        assert b"".join(buffers) == MIXED_DATA[start : start + length]


async def test_read_into_without_backing_unallocated_is_zeroes_in_dirty_buffers() -> None:
    async with opened(content({2: 1})) as engine:
        buffer = bytearray(b"x" * (SPAN + CLUSTER))
        await engine.read_into([buffer], 0, len(buffer))
        assert buffer == bytes(len(buffer))


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("size", [0, 1, CLUSTER, CLUSTER + 77, 2 * SPAN])
async def test_read_into_past_the_end_of_backing_is_zeroes(inline: bool, size: int) -> None:
    backing = Bytes(b"B" * size, inline=inline)
    async with opened(content({5: 4 * CLUSTER}), backing=backing) as engine:
        for start, length in ((0, 3 * CLUSTER), (CLUSTER + 70, 10), (CLUSTER + 77, 1)):
            buffer = bytearray(b"x" * length)
            await engine.read_into([buffer], start, length)
            expected = b"B" * max(0, min(size - start, length))
            assert buffer == expected.ljust(length, b"\0")


async def test_read_into_contiguous_clusters_is_one_read() -> None:
    storage = FaultStorage(MemoryStorage(content(MIXED)), inline=False)
    async with opened(storage) as engine:
        await engine.read_into([bytearray(2 * CLUSTER)], 0, 2 * CLUSTER)
        reads = [c for c in storage.calls if c.event is Event.READ_AIO]
        assert [(c.offset, c.length) for c in reads] == [(4 * CLUSTER, 2 * CLUSTER)]


async def test_read_into_misses_are_awaited_together() -> None:
    storage = FaultStorage(MemoryStorage(content(MIXED)), inline=False)
    async with opened(storage, backing=Bytes(b"B" * 2 * SPAN)) as engine:
        storage.add(Fault("pause", event=Event.READ_AIO, once=False))
        reading = asyncio.create_task(engine.read_into([bytearray(6 * CLUSTER)], 0, 6 * CLUSTER))
        await storage.wait_paused(3)
        storage.resume()
        await reading


async def test_read_into_one_bad_run_raises_that_error() -> None:
    storage = FaultStorage(MemoryStorage(content(MIXED)), inline=False)
    async with opened(storage) as engine:
        storage.add(Fault("error", event=Event.READ_AIO, call=2))
        with pytest.raises(StorageError) as caught:
            await engine.read_into([bytearray(6 * CLUSTER)], 0, 6 * CLUSTER)
        assert (caught.value.errno, caught.value.offset) == (5, 9 * CLUSTER)
        assert await engine.read(CLUSTER, 0) == letter(4) * CLUSTER


async def test_read_into_corrupt_entry_raises_and_its_neighbours_are_read() -> None:
    async with opened(content({0: 4 * CLUSTER, 1: 12345, 2: 5 * CLUSTER})) as engine:
        with pytest.raises(CorruptTable) as caught:
            await engine.read(3 * CLUSTER, 0)
        assert (caught.value.level, caught.value.index, caught.value.pos) == (2, 1, CLUSTER)
        assert await engine.read(CLUSTER, 0) == letter(4) * CLUSTER
        assert await engine.read(CLUSTER, 2 * CLUSTER) == letter(5) * CLUSTER


async def test_read_into_cancelled_ends_before_it_raises() -> None:
    storage = FaultStorage(MemoryStorage(content(MIXED)), inline=False)
    async with opened(storage) as engine:
        storage.add(Fault("pause", event=Event.READ_AIO, once=False))
        buffer = bytearray(6 * CLUSTER)
        reading = asyncio.create_task(engine.read_into([buffer], 0, len(buffer)))
        await storage.wait_paused(3)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert engine.gate.inside == 0
        storage.resume()
        await turns()
        assert letter(9) not in buffer


async def test_read_into_across_a_table_border_reads_both() -> None:
    made = bytearray(
        image(clusters=12, l1={0: TABLE, 1: 3 * CLUSTER}, l2={3 * CLUSTER: {0: 6 * CLUSTER}})
    )
    made[TABLE + 511 * 8 : TABLE + 512 * 8] = (5 * CLUSTER).to_bytes(8, "little")
    made[5 * CLUSTER : 7 * CLUSTER] = b"x" * CLUSTER + b"y" * CLUSTER
    async with opened(bytes(made)) as engine:
        assert await engine.read(200, SPAN - 100) == b"x" * 100 + b"y" * 100
