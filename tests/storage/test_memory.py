"""The storage in memory: what it does beyond the contract."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from qedasync.storage.memory import CHUNK, MemoryStorage, SparseBytes

TIB = 1 << 40


async def test_growth_to_16_tib_allocates_next_to_nothing() -> None:
    storage = MemoryStorage(b"abc")
    tracemalloc.start()
    await storage.truncate(16 * TIB)
    await storage.write([b"x"], 16 * TIB - 1)
    await storage.write_zeroes(0, 15 * TIB)
    await storage.write_zeroes(14 * TIB, 3 * TIB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert storage.size == 17 * TIB
    assert peak < 4 * CHUNK


async def test_next_data_finds_each_chunk_that_was_written() -> None:
    storage = MemoryStorage()
    await storage.truncate(TIB)
    await storage.write([b"x"], 5 * CHUNK + 7)
    await storage.write([b"x"], TIB // 2)
    assert await storage.next_data(0) == 5 * CHUNK
    assert await storage.next_data(5 * CHUNK + 9) == 5 * CHUNK + 9
    assert await storage.next_data(6 * CHUNK) == TIB // 2
    assert await storage.next_data(TIB // 2 + CHUNK) == TIB


async def test_write_zeroes_makes_whole_chunks_holes() -> None:
    storage = MemoryStorage(b"\1" * (4 * CHUNK))
    await storage.write_zeroes(CHUNK - 1, 2 * CHUNK + 2)
    assert await storage.next_data(CHUNK) == 3 * CHUNK
    assert storage.snapshot() == (b"\1" * (CHUNK - 1) + bytes(2 * CHUNK + 2) + b"\1" * (CHUNK - 1))


async def test_inline_storage_never_suspends() -> None:
    storage = MemoryStorage(b"abc")
    coroutine = storage.write([b"x"], 0)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert storage.try_read_into([bytearray(3)], 0)


async def test_storage_not_inline_suspends_before_it_acts() -> None:
    storage = MemoryStorage(b"abc", inline=False)
    assert not storage.try_read_into([bytearray(3)], 0)
    task = asyncio.create_task(storage.write([b"x"], 0))
    await asyncio.sleep(0)
    assert storage.snapshot() == b"abc"
    await asyncio.sleep(0)
    assert task.done()
    assert storage.snapshot() == b"xbc"


async def test_cancelled_call_not_inline_has_touched_nothing() -> None:
    storage = MemoryStorage(b"abc", inline=False)
    task = asyncio.create_task(storage.write([b"x"], 0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert storage.snapshot() == b"abc"


async def test_snapshot_after_close_is_readable() -> None:
    storage = MemoryStorage(b"abc")
    await storage.close()
    assert storage.snapshot() == b"abc"


async def test_copy_of_a_closed_storage_is_open_and_apart() -> None:
    storage = MemoryStorage(b"abc")
    await storage.close()
    twin = storage.copy()
    await twin.write([b"x"], 0)
    assert twin.snapshot() == b"xbc"
    assert storage.snapshot() == b"abc"


def test_sparse_copies_do_not_see_each_other() -> None:
    first = SparseBytes(b"\1" * (2 * CHUNK))
    second = first.copy()
    third = second.copy()
    first.write(b"\2", 0)
    second.write(b"\3", CHUNK)
    third.zero(0, CHUNK + 1)
    third.resize(CHUNK + 2)
    assert bytes(first) == b"\2" + b"\1" * (2 * CHUNK - 1)
    assert bytes(second) == b"\1" * CHUNK + b"\3" + b"\1" * (CHUNK - 1)
    assert bytes(third) == bytes(CHUNK + 1) + b"\1"


def test_sparse_write_to_a_copied_chunk_a_second_time_stays_apart() -> None:
    first = SparseBytes(b"abc")
    first.write(b"x", 0)
    second = first.copy()
    first.write(b"y", 0)
    second.write(b"z", 1)
    assert bytes(first) == b"ybc"
    assert bytes(second) == b"xzc"


def test_sparse_chunk_that_was_dropped_can_be_written_again() -> None:
    content = SparseBytes(b"\1" * CHUNK)
    content.zero(0, CHUNK)
    content.write(b"x", 1)
    assert bytes(content) == b"\0x" + bytes(CHUNK - 2)


def test_sparse_copy_shares_the_chunks() -> None:
    content = SparseBytes(b"\1" * (64 * CHUNK))
    tracemalloc.start()
    copies = [content.copy() for _ in range(10)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(copies) == 10
    assert peak < CHUNK
