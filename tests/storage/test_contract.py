"""The storage contract (qedasync/storage/base.py), over every backend and wrapper."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.storage.base import ReadBuffers, Storage, Write, WriteBuffers
from tests.storage.backends import Backend, content, read

KIB = 1024
MIB = 1024 * KIB


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes without a repeat that a wrong offset would hide in; none of them is zero."""
    return bytes(random.Random(seed).choices(range(1, 256), k=length))


def write_of(data: bytes, offset: int) -> Write:
    return Write(offset, [data], len(data), Event.WRITE_AIO)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_storage_satisfies_the_protocol(backend: Backend) -> None:
    async with backend.open() as storage:
        assert isinstance(storage, Storage)
        assert isinstance(storage.zero_fills, bool)


# ---------------------------------------------------------------------- reads


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 10_000), (0, 1), (511, 2), (4095, 4098), (9_999, 1), (123, 0)]
)
async def test_read_inside_the_file_gives_its_bytes(
    backend: Backend, offset: int, length: int
) -> None:
    data = pattern(10_000)
    async with backend.open(data) as storage:
        assert storage.size == 10_000
        assert await read(storage, offset, length) == data[offset : offset + length]


@pytest.mark.parametrize("offset", [0, 700, 999, 1000, 1001, 1 << 40])
async def test_read_past_the_end_gives_zeroes(backend: Backend, offset: int) -> None:
    data = pattern(1000)
    async with backend.open(data) as storage:
        assert await read(storage, offset, 5000) == data[offset:].ljust(5000, b"\0")
        assert storage.size == 1000


async def test_read_into_several_buffers_scatters(backend: Backend) -> None:
    data = pattern(20_000)
    async with backend.open(data) as storage:
        whole = bytearray(9000)
        middle = memoryview(whole)[100:5000]
        buffers: ReadBuffers = [bytearray(1), middle, bytearray(0), bytearray(4096)]
        await storage.read_into(buffers, 77)
        assert b"".join(buffers) == data[77 : 77 + 1 + 4900 + 4096]
        assert not any(whole[:100])
        assert not any(whole[5000:])


async def test_read_into_several_buffers_past_the_end_gives_zeroes(backend: Backend) -> None:
    async with backend.open(b"abc") as storage:
        buffers = [bytearray(b"xx"), bytearray(b"xx"), bytearray(b"xx")]
        await storage.read_into(buffers, 0)
        assert buffers == [b"ab", b"c\0", b"\0\0"]


async def test_try_read_true_has_filled_the_buffers(backend: Backend) -> None:
    data = pattern(5000)
    async with backend.open(data) as storage:
        for offset, length in [(0, 100), (4000, 1000), (4500, 600), (6000, 10)]:
            first, second = bytearray(b"\xee" * (length // 2)), bytearray(b"\xee" * (length // 2))
            if storage.try_read_into([first, second], offset):
                assert first + second == data[offset : offset + length].ljust(length, b"\0")


async def test_try_read_after_write_is_never_stale(backend: Backend) -> None:
    async with backend.open(pattern(4096)) as storage:
        await storage.write([b"new"], 10)
        buffer = bytearray(3)
        if storage.try_read_into([buffer], 10):
            assert buffer == b"new"


# --------------------------------------------------------------------- writes


@pytest.mark.parametrize("offset", [0, 1, 511, 4096, 65_530, 99_990])
async def test_write_inside_the_file_changes_only_its_bytes(backend: Backend, offset: int) -> None:
    model = bytearray(pattern(100_000))
    async with backend.open(bytes(model)) as storage:
        await storage.write([b"0123456789"], offset)
        model[offset : offset + 10] = b"0123456789"
        assert await content(storage) == model


async def test_write_several_buffers_gathers(backend: Backend) -> None:
    data = pattern(9000)
    async with backend.open() as storage:
        buffers: WriteBuffers = [data[:1], bytearray(data[1:5000]), b"", memoryview(data)[5000:]]
        await storage.write(buffers, 300)
        assert await content(storage) == bytes(300) + data


async def test_write_more_buffers_than_a_system_call_takes_arrives(backend: Backend) -> None:
    data = pattern(6000)
    async with backend.open() as storage:
        await storage.write([data[i : i + 2] for i in range(0, 6000, 2)], 5)
        buffers = [bytearray(3) for _ in range(2000)]
        await storage.read_into(buffers, 5)
        assert b"".join(buffers) == data


async def test_write_past_the_end_grows_and_the_gap_is_zero(backend: Backend) -> None:
    async with backend.open(b"abc") as storage:
        await storage.write([b"xyz"], 70_000)
        assert storage.size == 70_003
        if storage.zero_fills:
            assert await content(storage) == b"abc".ljust(70_000, b"\0") + b"xyz"


async def test_write_over_the_end_grows_by_the_rest(backend: Backend) -> None:
    async with backend.open(b"abcdef") as storage:
        await storage.write([b"123456"], 4)
        assert storage.size == 10
        assert await content(storage) == b"abcd123456"


async def test_write_of_nothing_changes_nothing(backend: Backend) -> None:
    async with backend.open(b"abc") as storage:
        await storage.write([], 1)
        await storage.write([b""], 5000)
        await storage.write_zeroes(6000, 0)
        await storage.write_many([])
        assert storage.size == 3
        assert await content(storage) == b"abc"


async def test_write_many_overlapping_leaves_the_last_on_top(backend: Backend) -> None:
    async with backend.open(bytes(20)) as storage:
        await storage.write_many(
            [write_of(b"aaaaaaaa", 0), write_of(b"bbbb", 2), write_of(b"c", 3), write_of(b"dd", 7)]
        )
        assert await content(storage) == b"aabcbbadd".ljust(20, b"\0")


async def test_write_many_adjacent_and_scattered_all_arrive(backend: Backend) -> None:
    model = bytearray(300_000)
    offsets = [0, 4096, 8192, 200_000, 12_288, 100, 250_000, 299_000]
    writes = [write_of(pattern(900 + i, seed=i), offset) for i, offset in enumerate(offsets)]
    async with backend.open(bytes(model)) as storage:
        await storage.write_many(writes)
        for write in writes:
            model[write.offset : write.offset + write.length] = b"".join(write.buffers)
        assert await content(storage) == model


async def test_write_many_grow_to_makes_the_file_longer_first(backend: Backend) -> None:
    async with backend.open(b"abc") as storage:
        await storage.write_many([write_of(b"x", 1), write_of(b"y", 9)], grow_to=5000)
        assert storage.size == 5000
        assert await content(storage) == b"axc\0\0\0\0\0\0y".ljust(5000, b"\0")


async def test_write_many_grow_to_and_nothing_else_grows(backend: Backend) -> None:
    async with backend.open(b"abc") as storage:
        await storage.write_many([], grow_to=70_000)
        assert storage.size == 70_000
        assert await content(storage) == b"abc".ljust(70_000, b"\0")


async def test_write_many_grow_to_less_than_the_size_cuts_nothing(backend: Backend) -> None:
    async with backend.open(pattern(100)) as storage:
        await storage.write_many([write_of(b"x", 0)], grow_to=50)
        assert storage.size == 100
        assert await content(storage) == b"x" + pattern(100)[1:]


@pytest.mark.parametrize("lead", [0, 1, 2])
async def test_write_many_grow_to_beside_a_longer_write_cuts_nothing(
    backend: Backend, lead: int
) -> None:
    async with backend.open(b"abc") as storage:
        async with asyncio.TaskGroup() as group:
            group.create_task(storage.write([b"far"], 90_000))
            await turns(lead)
            group.create_task(storage.write_many([write_of(b"x", 0)], grow_to=50_000))
        assert storage.size == 90_003
        assert await content(storage) == b"xbc".ljust(90_000, b"\0") + b"far"


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (1, 510), (500, 100), (4096, 4096), (4000, 70_000), (0, 200_000), (65_536, 131_072)],
)
async def test_write_zeroes_inside_the_file_zeroes_only_its_range(
    backend: Backend, offset: int, length: int
) -> None:
    model = bytearray(pattern(200_000))
    async with backend.open(bytes(model)) as storage:
        await storage.write_zeroes(offset, length)
        model[offset : offset + length] = bytes(length)
        assert storage.size == 200_000
        assert await content(storage) == model


async def test_write_zeroes_longer_than_its_source_zeroes_all(backend: Backend) -> None:
    async with backend.open(b"\x55" * (2 * MIB + 9 * KIB)) as storage:
        await storage.write_zeroes(100, 2 * MIB + KIB)
        assert await content(storage) == (
            (b"\x55" * 100).ljust(2 * MIB + KIB + 100, b"\0") + b"\x55" * (8 * KIB - 100)
        )


@pytest.mark.parametrize(("offset", "length"), [(50, 100), (100, 1), (5000, 300)])
async def test_write_zeroes_past_the_end_grows(backend: Backend, offset: int, length: int) -> None:
    data = pattern(100)
    async with backend.open(data) as storage:
        await storage.write_zeroes(offset, length)
        assert storage.size == offset + length
        assert await content(storage) == data[:offset].ljust(offset + length, b"\0")


# ------------------------------------------------------- truncate, flush, data


async def test_truncate_shorter_cuts(backend: Backend) -> None:
    data = pattern(100_000)
    async with backend.open(data) as storage:
        await storage.truncate(70_001)
        assert storage.size == 70_001
        assert await read(storage, 0, 100_000) == data[:70_001].ljust(100_000, b"\0")


@pytest.mark.parametrize("cut", [0, 3, 65_536, 65_537])
async def test_truncate_shorter_then_longer_does_not_bring_bytes_back(
    backend: Backend, cut: int
) -> None:
    data = pattern(70_000)
    async with backend.open(data) as storage:
        await storage.truncate(cut)
        await storage.truncate(70_000)
        assert storage.size == 70_000
        assert await content(storage) == data[:cut].ljust(70_000, b"\0")


async def test_truncate_to_a_terabyte_costs_nothing_and_reads_zeroes(backend: Backend) -> None:
    async with backend.open(b"abc") as storage:
        await storage.truncate(1 << 40)
        await storage.write([b"end"], (1 << 40) - 3)
        assert storage.size == 1 << 40
        assert await read(storage, (1 << 40) - 100, 100) == b"end".rjust(100, b"\0")
        assert await read(storage, 1 << 39, 100) == bytes(100)


async def test_flush_at_any_time_returns(backend: Backend) -> None:
    async with backend.open() as storage:
        await storage.flush()
        await storage.write([b"abc"], 0)
        async with asyncio.TaskGroup() as group:
            group.create_task(storage.write([b"x"], 1))
            for _ in range(3):
                group.create_task(storage.flush())
        await storage.flush()
        assert await content(storage) == b"axc"


async def test_next_data_never_skips_data(backend: Backend) -> None:
    async with backend.open() as storage:
        await storage.truncate(1_500_000)
        for offset in (300, 200_000, 1_000_000):
            await storage.write([b"data"], offset)
        data = await content(storage)
        for offset in (0, 299, 301, 305, 65_536, 199_999, 200_003, 200_004, 999_999, 1_000_004):
            found = await storage.next_data(offset)
            assert offset <= found <= 1_500_000
            assert not any(data[offset:found])


async def test_next_data_at_or_after_the_end_is_the_size(backend: Backend) -> None:
    async with backend.open(b"abc") as storage:
        assert await storage.next_data(3) == 3
        assert await storage.next_data(100) == 3


# ---------------------------------------------------------------- concurrency


async def test_read_after_write_among_many_tasks_sees_it(backend: Backend) -> None:
    async def client(number: int) -> None:
        for step in range(5):
            data = pattern(700, seed=number * 10 + step)
            await storage.write([data[:100], data[100:]], number * 700)
            assert await read(storage, number * 700, 700) == data

    async with backend.open() as storage, asyncio.TaskGroup() as group:
        for number in range(16):
            group.create_task(client(number))


async def test_reads_beside_growing_writes_see_old_or_new_bytes(backend: Backend) -> None:
    async with backend.open(bytes(4096)) as storage:

        async def reader() -> None:
            for _ in range(10):
                assert set(await read(storage, 0, 8192)) <= {0, 7}
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(reader())
            for offset in range(0, 8192, 1024):
                group.create_task(storage.write([b"\7" * 1024], offset))
        assert await content(storage) == b"\7" * 8192


async def test_overlapping_writes_leave_one_of_the_values_in_each_byte(backend: Backend) -> None:
    async with backend.open(bytes(3000)) as storage:
        async with asyncio.TaskGroup() as group:
            for value in range(1, 9):
                group.create_task(storage.write([bytes([value]) * 2000], value * 100))
        data = await content(storage)
        for offset, byte in enumerate(data):
            writers = [v for v in range(1, 9) if v * 100 <= offset < v * 100 + 2000]
            assert byte in (writers or [0]), offset


# --------------------------------------------------------------- cancellation


@pytest.mark.parametrize("lead", range(5))
async def test_cancelled_read_leaves_the_buffer_alone_afterwards(
    backend: Backend, lead: int
) -> None:
    async with backend.open(b"\x55" * MIB) as storage:
        buffers = [bytearray(MIB // 2), bytearray(MIB // 2)]
        task = asyncio.create_task(storage.read_into(buffers, 0))
        await turns(lead)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        for buffer in buffers:
            buffer[:] = bytes(len(buffer))
        await read(storage, 0, MIB)
        await storage.flush()
        assert not any(buffers[0])
        assert not any(buffers[1])


@pytest.mark.parametrize("lead", range(5))
async def test_cancelled_write_is_whole_or_absent_and_does_not_come_later(
    backend: Backend, lead: int
) -> None:
    old, new, last = (bytes([value]) * MIB for value in (1, 2, 3))
    async with backend.open(old) as storage:
        task = asyncio.create_task(storage.write([new], 0))
        await turns(lead)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert await content(storage) in (old, new)
        await storage.write([last], 0)
        await storage.flush()
        assert await content(storage) == last


@pytest.mark.parametrize("lead", range(3))
async def test_cancelled_call_among_others_harms_none_of_them(backend: Backend, lead: int) -> None:
    async with backend.open(bytes(4000)) as storage:
        kept = [asyncio.create_task(storage.write([b"k" * 100], n * 200)) for n in range(10)]
        gone = [asyncio.create_task(storage.write([b"c" * 100], n * 200 + 100)) for n in range(10)]
        await turns(lead)
        for task in gone:
            task.cancel()
        await asyncio.gather(*kept)
        await asyncio.gather(*gone, return_exceptions=True)
        data = await content(storage)
        for n in range(10):
            assert data[n * 200 : n * 200 + 100] == b"k" * 100
            assert data[n * 200 + 100 : n * 200 + 200] in (bytes(100), b"c" * 100)


async def test_repeated_cancellation_still_settles(backend: Backend) -> None:
    async with backend.open(b"\1" * MIB) as storage:
        task = asyncio.create_task(storage.write([b"\2" * MIB], 0))
        while not task.done():
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await content(storage) in (b"\1" * MIB, b"\2" * MIB)


# ----------------------------------------------------------- errors and close

CALLS: dict[str, Callable[[Storage], Awaitable[object]]] = {
    "read": lambda storage: storage.read_into([bytearray(3)], 1),
    "write": lambda storage: storage.write([b"abc"], 1),
    "write_many": lambda storage: storage.write_many([write_of(b"abc", 1)]),
    "grow": lambda storage: storage.write_many([], grow_to=100),
    "write_zeroes": lambda storage: storage.write_zeroes(1, 3),
    "flush": lambda storage: storage.flush(),
    "truncate": lambda storage: storage.truncate(1),
    "next_data": lambda storage: storage.next_data(0),
}


@pytest.mark.parametrize("call", CALLS)
async def test_call_after_close_raises_ebadf(backend: Backend, call: str) -> None:
    async with backend.open(pattern(10)) as storage:
        await storage.close()
        with pytest.raises(StorageError) as caught:
            await CALLS[call](storage)
        assert caught.value.errno == errno.EBADF
        if call in ("read", "write", "write_many", "write_zeroes"):
            assert (caught.value.offset, caught.value.length) == (1, 3)


async def test_try_read_after_close_answers_false(backend: Backend) -> None:
    async with backend.open(pattern(10)) as storage:
        await storage.close()
        assert not storage.try_read_into([bytearray(3)], 0)


async def test_close_twice_and_at_once_is_no_error(backend: Backend) -> None:
    async with backend.open(pattern(10)) as storage:
        await asyncio.gather(storage.close(), storage.close())
        await storage.close()


async def test_close_waits_for_calls_under_way(backend: Backend) -> None:
    async with backend.open(bytes(10)) as storage:
        writes = [asyncio.create_task(storage.write([b"x"], n)) for n in range(10)]
        await asyncio.sleep(0)
        await storage.close()
        results = await asyncio.gather(*writes, return_exceptions=True)
        for result in results:
            assert result is None or (
                isinstance(result, StorageError) and result.errno == errno.EBADF
            )


@pytest.mark.parametrize("call", ["read", "write"])
async def test_negative_offset_raises_einval_with_the_transfer(backend: Backend, call: str) -> None:
    async with backend.open(pattern(10)) as storage:
        transfer = storage.write if call == "write" else storage.read_into
        assert not storage.try_read_into([bytearray(3)], -4096)
        with pytest.raises(StorageError) as caught:
            await transfer([bytearray(2), bytearray(1)], -4096)
        assert caught.value.errno == errno.EINVAL
        assert (caught.value.offset, caught.value.length) == (-4096, 3)
        assert await content(storage) == pattern(10)


async def test_failed_call_leaves_the_storage_usable(backend: Backend) -> None:
    async with backend.open(b"abc") as storage:
        with pytest.raises(StorageError):
            await storage.truncate(-1)
        await storage.write([b"x"], 0)
        assert await content(storage) == b"xbc"
