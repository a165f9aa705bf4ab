"""The engine put together: the inline path, the gate, failure and the end."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from qedasync.engine.budget import INLINE_REQUESTS
from qedasync.engine.core import Engine, EngineOptions
from qedasync.engine.source import Source
from qedasync.engine.sources import ImageSource, RawSource
from qedasync.errors import (
    HeaderError,
    ImageClosed,
    ImageFailed,
    ReadOnly,
    StateError,
    StorageError,
)
from qedasync.events import Event
from qedasync.format.header import Header
from qedasync.storage.base import Started
from qedasync.storage.faults import Fault, FaultStorage
from qedasync.storage.memory import MemoryStorage
from qedasync.storage.recorder import RecorderStorage
from tests.engine.harness import CLUSTER, SPAN, Bytes, ManualClock, image, opened, steps, turns
from tests.helpers.model import blank

TABLE = 2 * CLUSTER


def mapped() -> bytes:
    """Clusters: data, ZERO, unallocated, data with an invalid neighbour."""
    made = bytearray(
        image(clusters=6, l1={0: TABLE}, l2={TABLE: {0: 4 * CLUSTER, 1: 1, 3: 5 * CLUSTER}})
    )
    made[4 * CLUSTER :] = b"d" * (2 * CLUSTER)
    return bytes(made)


async def write(engine: Engine, data: bytes, pos: int) -> None:
    await engine.write([data], pos, len(data))


# ------------------------------------------------------------------------ open


async def test_open_reads_the_header_and_the_l1_in_use_only() -> None:
    storage = FaultStorage(MemoryStorage(image(512 * SPAN, clusters=600)))
    async with opened(storage):
        assert sum(call.length or 0 for call in storage.calls) == 64 + CLUSTER


async def test_open_writes_nothing() -> None:
    storage = RecorderStorage(MemoryStorage(mapped()))
    async with opened(storage):
        assert storage.log == []


@pytest.mark.parametrize("writable", [True, False])
async def test_open_unknown_autoclear_bits_are_cleared_by_writers(writable: bool) -> None:
    content = bytearray(image())
    content[32] = 0xFF
    storage = RecorderStorage(MemoryStorage(bytes(content)))
    async with opened(storage, writable=writable) as engine:
        assert steps(storage) == (["header_update", "flush"] if writable else [])
        assert engine.header.autoclear_features == (0 if writable else 0xFF)


async def test_open_wrong_magic_raises_header_error() -> None:
    with pytest.raises(HeaderError):
        await Engine.open(MemoryStorage(b"QFI\xfb" * 1000), EngineOptions())


# ---------------------------------------------------------------- inline reads


def now(engine: Engine, length: int, pos: int) -> bytes | None:
    """What an inline read gives."""
    data = engine.try_read(length, pos)
    return None if data is None else bytes(data)


async def test_try_read_loaded_slice_answers_without_suspending() -> None:
    async with opened(mapped()) as engine:
        assert engine.try_read(10, 0) is None, "the slice is not loaded"
        await engine.read(1, 0)
        assert now(engine, 10, CLUSTER - 10) == b"d" * 10
        assert now(engine, 10, CLUSTER) == bytes(10)
        assert now(engine, 10, 2 * CLUSTER) == bytes(10)
        assert engine.inline_reads == 3


@pytest.mark.parametrize(
    ("length", "pos"),
    [
        (0, 0),
        (-1, 5),
        (1, -1),
        (2, 2 * SPAN - 1),
        (1, 2 * SPAN),
        (11, CLUSTER - 10),
        (1 << 70, 0),
        (1, 1 << 70),
    ],
)
async def test_try_read_what_it_cannot_do_answers_none(length: int, pos: int) -> None:
    async with opened(mapped()) as engine:
        await engine.read(1, 0)
        assert engine.try_read(length, pos) is None
        assert not engine.try_read_into([bytearray(1)], pos, length)
        assert engine.inline_reads == 0


async def test_try_read_over_backing_reads_it_where_nothing_is_mapped() -> None:
    async with opened(mapped(), backing=Bytes(b"B" * (SPAN + 10))) as engine:
        await engine.read(1, 0)
        assert now(engine, 1, 0) == b"d"
        assert now(engine, 1, CLUSTER) == b"\0"
        assert now(engine, 1, 2 * CLUSTER) == b"B"
        assert now(engine, 10, SPAN) == b"B" * 10, "no table there"
        assert engine.try_read(11, SPAN) is None, "past its end"
        assert engine.inline_reads == 4


async def test_try_read_over_backing_that_would_block_answers_none() -> None:
    backing = Bytes(b"B" * SPAN, inline=False)
    async with opened(mapped(), backing=backing) as engine:
        assert engine.try_read(1, 2 * CLUSTER) is None
        assert await engine.read(1, 2 * CLUSTER) == b"B"
        assert engine.inline_reads == 0


async def test_try_read_storage_that_would_block_answers_none() -> None:
    async with opened(MemoryStorage(mapped(), inline=False)) as engine:
        await engine.read(1, 0)
        assert engine.try_read(1, 0) is None
        assert now(engine, 1, CLUSTER) == b"\0", "needs no storage"


async def test_try_read_budget_used_up_gives_the_loop_a_turn() -> None:
    async with opened(mapped()) as engine:
        await engine.read(1, 0)
        ticks = 0
        running = True

        async def tick() -> None:
            nonlocal ticks
            while running:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.create_task(tick())
        for _ in range(2000):
            if engine.try_read(1, 0) is None:
                assert await engine.read(1, 0) == b"d"
        running = False
        await ticker
        assert ticks >= 2000 // INLINE_REQUESTS
        assert engine.current_stats().pauses >= 2000 // INLINE_REQUESTS


async def inline_reads(content: bytes, length: int) -> int:
    """How many reads of that length finish inline before one is asked to wait."""
    async with opened(content) as engine:
        await engine.read(1, 0)
        before = engine.inline_reads
        while engine.try_read(length, 0) is not None:
            pass
        return engine.inline_reads - before


async def test_try_read_large_reads_use_the_budget_up_sooner() -> None:
    mib = 1 << 20
    content = bytearray(blank(2 * mib, mib, 1) + bytes(2 * mib))
    content[mib : mib + 8] = (2 * mib).to_bytes(8, "little")
    content[2 * mib : 2 * mib + 8] = (3 * mib).to_bytes(8, "little")
    small = await inline_reads(bytes(content), 1)
    large = await inline_reads(bytes(content), 256 << 10)
    assert 0 < large < small // 4


# ---------------------------------------------------------------- life cycle


async def test_close_clears_need_check_after_a_flush_and_closes_the_backing() -> None:
    memory = MemoryStorage(image())
    storage = RecorderStorage(memory)
    backing = Bytes(b"")
    async with opened(storage) as engine:
        await write(engine, b"x", 0)
        engine.attach(backing)
        assert memory.snapshot()[16] & 2
        start = len(storage.log)
        await engine.close()
        assert steps(storage, start)[:3] == ["flush", "header_update", "flush"]
        assert not memory.snapshot()[16] & 2
        assert backing.closed
        with pytest.raises(StorageError):
            await memory.flush()


async def test_close_read_only_writes_nothing() -> None:
    storage = RecorderStorage(MemoryStorage(image(need_check=True)))
    async with opened(storage, writable=False) as engine:
        await engine.close()
        assert storage.log == []


class Starting(MemoryStorage):
    """Takes reads without a coroutine; the test ends them, or has them refused."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content, inline=False)
        self.started: list[tuple[int, int, asyncio.Future[bytearray | None]]] = []

    def start_read(self, length: int, offset: int) -> Started | None:
        future: asyncio.Future[bytearray | None] = asyncio.get_running_loop().create_future()
        self.started.append((length, offset, future))
        return future


async def under_way(engine: Engine, storage: Starting) -> asyncio.Task[bytearray]:
    """A read of five bytes, three into the first cluster, that the storage has begun."""
    await engine.read(1, CLUSTER)  # loads the slice
    reading = asyncio.create_task(engine.read(5, 3))
    await turns()
    return reading


async def test_read_that_the_storage_begins_is_awaited_there() -> None:
    storage = Starting(mapped())
    async with opened(storage) as engine:
        reading = await under_way(engine, storage)
        (length, offset, future), *others = storage.started
        assert (length, offset, others) == (5, 4 * CLUSTER + 3, [])
        future.set_result(bytearray(b"seven"))
        before = engine.stats.reads
        assert await reading == b"seven"
        assert engine.stats.reads == before + 1


async def test_read_that_the_storage_gives_up_is_made_the_other_way() -> None:
    storage = Starting(mapped())
    async with opened(storage) as engine:
        reading = await under_way(engine, storage)
        storage.started[0][2].set_result(None)
        assert await reading == b"ddddd"


@pytest.mark.parametrize(
    ("length", "pos"), [(2, CLUSTER - 1), (1, CLUSTER), (1, 2 * CLUSTER), (1, SPAN)]
)
async def test_read_of_anything_but_one_piece_of_data_is_not_begun(length: int, pos: int) -> None:
    storage = Starting(mapped())
    async with opened(storage) as engine:
        await engine.read(1, CLUSTER)
        assert await engine.read(length, pos) == (b"d" if length > 1 else b"") + bytes(1)
        assert storage.started == []


async def test_close_waits_for_reads_that_the_storage_began() -> None:
    storage = Starting(mapped())
    async with opened(storage) as engine:
        reading = await under_way(engine, storage)
        closing = asyncio.create_task(engine.close())
        await turns()
        assert not closing.done()
        late = asyncio.create_task(engine.read(5, 3))
        await turns()
        storage.started[0][2].set_result(bytearray(5))
        await asyncio.gather(reading, closing)
        with pytest.raises(ImageClosed):
            await late
        assert len(storage.started) == 1


async def test_read_that_the_storage_began_is_cancelled_at_once() -> None:
    storage = Starting(mapped())
    async with opened(storage) as engine:
        reading = await under_way(engine, storage)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await engine.close()


async def test_close_again_is_fine_also_at_once() -> None:
    async with opened(image()) as engine:
        await asyncio.gather(engine.close(), engine.close())
        await engine.close()


async def test_close_waits_for_requests_in_flight() -> None:
    memory = MemoryStorage(mapped())
    storage = FaultStorage(memory)
    async with opened(storage) as engine:
        storage.add(Fault("pause", event=Event.WRITE_AIO))
        writing = asyncio.create_task(write(engine, b"new", 0))
        await storage.wait_paused()
        closing = asyncio.create_task(engine.close())
        await turns()
        assert not closing.done()
        storage.resume()
        await asyncio.gather(writing, closing)
        assert memory.snapshot()[4 * CLUSTER :][:3] == b"new"


async def test_close_request_that_waits_at_the_gate_learns_of_it() -> None:
    storage = FaultStorage(MemoryStorage(mapped()))
    async with opened(storage) as engine:
        storage.add(Fault("pause", event=Event.WRITE_AIO))
        writing = asyncio.create_task(write(engine, b"new", 0))
        await storage.wait_paused()
        closing = asyncio.create_task(engine.close())
        await turns()
        late: list[asyncio.Task[Any]] = [
            asyncio.create_task(engine.read(1, 0)),
            asyncio.create_task(write(engine, b"late", 0)),
        ]
        await turns()
        storage.resume()
        await asyncio.gather(writing, closing)
        for task in late:
            with pytest.raises(ImageClosed):
                await task


async def test_close_cancelled_runs_to_the_end() -> None:
    memory = MemoryStorage(image())
    storage = FaultStorage(memory)
    async with opened(storage) as engine:
        await write(engine, b"x", 0)
        storage.add(Fault("pause", op="flush"))
        closing = asyncio.create_task(engine.close())
        await storage.wait_paused()
        closing.cancel()
        await turns()
        assert not closing.done()
        storage.resume()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not memory.snapshot()[16] & 2


async def test_close_failing_flush_raises_keeps_the_bit_and_releases() -> None:
    memory = MemoryStorage(image())
    storage = FaultStorage(memory)
    async with opened(storage) as engine:
        await write(engine, b"x", 0)
        storage.add(Fault("error", op="flush"))
        with pytest.raises(StorageError):
            await engine.close()
        assert memory.snapshot()[16] & 2
        assert storage.count("close") == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.read(1, 0),
        lambda engine: engine.read_into([bytearray(1)], 0, 1),
        lambda engine: engine.write([b"x"], 0, 1),
        lambda engine: engine.write_zeroes(0, 1),
        lambda engine: engine.discard(0, 1),
        lambda engine: engine.flush(),
        lambda engine: engine.grow(4 * SPAN),
        lambda engine: engine.block_status(0, 1),
    ],
)
@pytest.mark.parametrize("writable", [True, False])
async def test_closed_engine_refuses_everything(call: Any, writable: bool) -> None:
    async with opened(mapped(), writable=writable) as engine:
        await engine.read(1, 0)
        await engine.close()
        with pytest.raises(ImageClosed):
            await call(engine)
        assert engine.try_read(1, 0) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.write([b"x"], 0, 1),
        lambda engine: engine.write_zeroes(0, 1),
        lambda engine: engine.discard(0, 1),
        lambda engine: engine.grow(4 * SPAN),
    ],
)
async def test_read_only_engine_refuses_changes(call: Any) -> None:
    storage = RecorderStorage(MemoryStorage(mapped()))
    async with opened(storage, writable=False) as engine:
        with pytest.raises(ReadOnly):
            await call(engine)
        await engine.flush()
        assert storage.log == []


async def test_exclusive_waits_for_those_inside_and_keeps_others_out() -> None:
    storage = FaultStorage(MemoryStorage(mapped()))
    async with opened(storage) as engine:
        await engine.read(1, 0)
        storage.add(Fault("pause", event=Event.WRITE_AIO))
        writing = asyncio.create_task(write(engine, b"new", 0))
        await storage.wait_paused()
        order: list[str] = []

        async def repair() -> None:
            async with engine.exclusive():
                order.append("in")
                assert engine.queue.turn.locked()
                assert engine.try_read(1, 0) is None, "the inline reads stay out too"
                await turns(10)
                order.append("out")

        repairing = asyncio.create_task(repair())
        await turns()
        assert order == []
        storage.resume()
        assert await engine.read(3, 0) == b"new"
        assert order == ["in", "out"]
        await asyncio.gather(writing, repairing)
        await engine.read(3, 0)
        assert now(engine, 3, 0) == b"new"


async def test_exclusive_body_raises_opens_the_gate_again() -> None:
    async with opened(mapped()) as engine:
        with pytest.raises(ZeroDivisionError):
            async with engine.exclusive():
                raise ZeroDivisionError
        assert await engine.read(1, 0) == b"d"


# ------------------------------------------------------------ flush and failure


async def test_flush_writable_flushes_once() -> None:
    storage = FaultStorage(MemoryStorage(mapped()))
    async with opened(storage) as engine:
        await engine.flush()
        assert storage.count("flush") == 1
        assert engine.stats.flushes == 1


async def test_flush_turned_off_does_nothing() -> None:
    storage = FaultStorage(MemoryStorage(mapped()))
    async with opened(storage, flushes=False) as engine:
        await engine.flush()
        assert storage.count("flush") == 0


async def test_flush_failing_fails_the_image_for_writes_only() -> None:
    storage = FaultStorage(MemoryStorage(mapped()))
    async with opened(storage) as engine:
        storage.add(Fault("error", op="flush"))
        with pytest.raises(StorageError):
            await engine.flush()
        for call in (engine.flush(), write(engine, b"x", 0), engine.write_zeroes(0, 1)):
            with pytest.raises(ImageFailed) as caught:
                await call
            assert isinstance(caught.value.__cause__, StorageError)
        assert await engine.read(1, 0) == b"d"
        with pytest.raises(ImageFailed):
            await engine.close()


async def test_flush_tells_what_failed_in_the_background_once() -> None:
    clock = ManualClock()
    storage = FaultStorage(MemoryStorage(image()))
    async with opened(storage, clock=clock) as engine:
        await write(engine, b"x", 0)
        await turns()
        storage.add(Fault("error", event=Event.HEADER_UPDATE))
        await clock.advance(6)
        with pytest.raises(StorageError):
            await engine.flush()
        await engine.flush()


async def test_write_through_every_write_is_flushed() -> None:
    storage = FaultStorage(MemoryStorage(mapped()))
    async with opened(storage, write_through=True) as engine:
        await write(engine, b"x", 0)
        await engine.write_zeroes(0, 1)
        assert storage.count("flush") == 2


async def test_need_check_is_cleared_by_the_clock() -> None:
    clock = ManualClock()
    memory = MemoryStorage(image())
    async with opened(memory, clock=clock) as engine:
        await write(engine, b"x", 0)
        await turns()
        await clock.advance(4)
        assert Header.parse(memory.snapshot()).need_check
        await clock.advance(2)
        assert not Header.parse(memory.snapshot()).need_check
        await write(engine, b"x", CLUSTER)
        assert engine.header.need_check


async def test_engine_on_another_loop_raises_state_error() -> None:
    async with opened(mapped()) as engine:
        caught: list[StateError] = []

        def elsewhere() -> None:
            try:
                asyncio.run(engine.read(1, 0))
            except StateError as error:
                caught.append(error)

        await asyncio.to_thread(elsewhere)
        await asyncio.get_running_loop().shutdown_default_executor()
        assert len(caught) == 1
        assert engine.gate.inside == 0


async def test_stats_count_what_was_done() -> None:
    async with opened(mapped()) as engine:
        await engine.read(5, 0)
        await write(engine, b"abc", 0)
        await write(engine, b"abcd", 2 * CLUSTER)
        await engine.write_zeroes(0, 1)
        await engine.discard(0, 1)
        stats = engine.stats
        assert (stats.reads, stats.read_bytes) == (1, 5)
        assert (stats.writes, stats.write_bytes) == (2, 7)
        assert stats.zero_writes == 2
        assert (stats.groups, stats.grouped_writes, stats.clusters_allocated) == (1, 1, 1)
        assert stats.l2_loads == 1


async def test_allocating_writes_with_the_budget_used_up_are_one_group_and_nobody_pauses() -> None:
    async with opened(mapped()) as engine:
        await engine.read(1, 0)  # loads the slice
        engine.budget.limit = engine.budget.reads
        assert engine.budget.used_up
        await asyncio.gather(*(write(engine, b"w", n * CLUSTER) for n in range(4, 24)))
        assert engine.current_stats().pauses == 0
        assert (engine.stats.groups, engine.stats.grouped_writes) == (1, 20)
        assert await engine.read(1, 23 * CLUSTER) == b"w"


# ------------------------------------------------------------- chains, inline


async def layer(
    below: Source | None, cluster: int, rng: random.Random, size: int = 4 * SPAN
) -> Engine:
    """An image with some data and some zeroes, over another."""
    engine = await Engine.open(
        MemoryStorage(blank(size, cluster, 1)), EngineOptions(writable=True), "layer.qed"
    )
    engine.attach(below)
    for _ in range(12):
        pos = rng.randrange(0, size - cluster, 512)
        if rng.random() < 0.3:
            await engine.write_zeroes(pos, cluster)
        else:
            await write(engine, rng.randbytes(rng.choice([512, 3 * cluster // 2])), pos)
    return engine


@pytest.mark.parametrize("seed", range(4))
async def test_try_read_through_a_chain_gives_what_the_general_way_gives(seed: int) -> None:
    """Clusters of several sizes, images of several sizes, a raw file at the bottom."""
    rng = random.Random(seed)
    bottom = RawSource(MemoryStorage(rng.randbytes(SPAN + 100)), "base.raw")
    first = await layer(bottom, 4096, rng, 2 * SPAN)
    second = await layer(ImageSource(first, "first"), 16384, rng, 3 * SPAN)
    top = await layer(ImageSource(second, "second"), 4096, rng)
    answered = 0
    for _ in range(2000):
        pos = rng.randrange(top.image_size)
        length = min(rng.choice([1, 512, 4096, 5000]), top.image_size - pos)
        expected = bytearray(length)
        await top.read_into([expected], pos, length)
        top.budget.limit = top.budget.reads + 2
        data = top.try_read(length, pos)
        assert data is None or data == expected, (seed, pos, length)
        answered += data is not None
    assert answered > 800
    await top.close()
