"""Past the page cache: what native AIO takes, what goes to threads, and what happens in between."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qedasync.errors import StorageError

if sys.platform != "linux":
    pytest.skip("O_DIRECT and native AIO are Linux's", allow_module_level=True)

from qedasync.storage.direct import DirectStorage
from qedasync.storage.native_aio import LONGEST, SLOTS, AioCalls, host_calls
from tests.storage.backends import content, direct, read

KIB = 1024
BLOCK = 4 * KIB
DATA = bytes(range(256)) * KIB
"""The file, 64 blocks that differ from their neighbours by nothing but where they lie."""


class Calls(AioCalls):
    """The host's calls, counted; some fail when the test says so."""

    def __init__(self, host: AioCalls) -> None:
        self._host = host
        self.taken: list[int] = []  # requests, by submit
        self.open = 0  # contexts
        self.fail: dict[str, int] = {}  # call -> errno
        self.submitted = asyncio.Event()
        self.at_most = SLOTS  # requests of one submit

    def setup(self) -> int:
        self._check("setup")
        self.open += 1
        return self._host.setup()

    def destroy(self, context: int) -> None:
        self.open -= 1
        self._host.destroy(context)

    def submit(self, context: int, count: int, iocbs: int) -> int:
        self._check("submit")
        taken = self._host.submit(context, min(count, self.at_most), iocbs)
        self.taken.append(taken)
        self.submitted.set()
        return taken

    def getevents(self, context: int, limit: int, events: int) -> int:
        self._check("getevents")
        return self._host.getevents(context, limit, events)

    def _check(self, name: str) -> None:
        if name in self.fail:
            raise OSError(self.fail[name], os.strerror(self.fail[name]))


@pytest.fixture
def calls() -> Calls:
    host = host_calls()
    if host is None:
        pytest.skip("no native AIO on this host")
    return Calls(host)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


@asynccontextmanager
async def opened(path: Path, calls: AioCalls | None) -> AsyncIterator[DirectStorage]:
    try:
        storage = direct(path, lambda: calls)
    except StorageError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("the file system of the temporary directory has no O_DIRECT")
    try:
        yield storage
    finally:
        await storage.close()


async def test_reads_at_once_leave_in_few_calls(path: Path, calls: Calls) -> None:
    async with opened(path, calls) as storage:
        got = await asyncio.gather(*(read(storage, n * BLOCK, BLOCK) for n in range(8)))
        assert b"".join(got) == DATA[: 8 * BLOCK]
        assert calls.taken == [8]
        await asyncio.gather(*(read(storage, n * BLOCK, BLOCK) for n in range(48)))
        assert calls.taken == [8, 16, 16, 16]
    assert calls.open == 0


async def test_unaligned_read_of_several_buffers_is_cut_out(path: Path, calls: Calls) -> None:
    async with opened(path, calls) as storage:
        first, second = bytearray(3), bytearray(5000)
        await storage.read_into([first, second], 4090)
        assert bytes(first + second) == DATA[4090 : 4090 + 5003]
        assert calls.taken == [1]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, LONGEST + 1), (1, LONGEST), (len(DATA) - BLOCK, 2 * BLOCK)]
)
async def test_read_that_is_too_long_or_ends_early_gets_there(
    path: Path, calls: Calls, offset: int, length: int
) -> None:
    async with opened(path, calls) as storage:
        expected = DATA[offset : offset + length]
        assert await read(storage, offset, length) == expected + bytes(length - len(expected))


async def test_more_reads_than_slots_all_arrive(path: Path, calls: Calls) -> None:
    async with opened(path, calls) as storage:
        places = [n * 512 % len(DATA) for n in range(2 * SLOTS)]
        got = await asyncio.gather(*(read(storage, place, 512) for place in places))
        assert got == [DATA[place : place + 512] for place in places]


async def test_aligned_write_inside_the_file_takes_no_thread(path: Path, calls: Calls) -> None:
    async with opened(path, calls) as storage:
        await storage.write([b"a" * 1024, bytearray(b"b" * 3072)], BLOCK)
        assert calls.taken == [1]
        await storage.flush()
        assert path.read_bytes()[BLOCK : 2 * BLOCK] == b"a" * 1024 + b"b" * 3072


@pytest.mark.parametrize(("offset", "length"), [(1, BLOCK), (BLOCK, 100), (len(DATA), BLOCK)])
async def test_write_unaligned_or_past_the_end_goes_to_a_thread(
    path: Path, calls: Calls, offset: int, length: int
) -> None:
    async with opened(path, calls) as storage:
        await storage.write([b"w" * length], offset)
        assert calls.taken == []
        expected = bytearray(DATA)
        expected[offset : offset + length] = b"w" * length
        assert path.read_bytes() == expected
        assert storage.size == len(expected)


async def test_unaligned_write_waits_for_native_ones(path: Path, calls: Calls) -> None:
    """It reads the blocks around its bytes, and would write back what they were."""
    async with opened(path, calls) as storage:
        for n in range(20):
            aligned, odd = bytes([n]) * BLOCK, bytes([n + 100]) * 10
            await asyncio.gather(storage.write([aligned], 0), storage.write([odd], BLOCK))
            assert (await read(storage, 0, BLOCK + 10)) == aligned + odd


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOSYS, errno.EIO])
async def test_submit_that_fails_is_made_up_for_by_threads(
    path: Path, calls: Calls, number: int
) -> None:
    async with opened(path, calls) as storage:
        calls.fail["submit"] = number
        assert await read(storage, BLOCK, BLOCK) == DATA[BLOCK : 2 * BLOCK]
        await storage.write([b"x" * BLOCK], BLOCK)
        calls.fail.clear()
        assert await read(storage, BLOCK, BLOCK) == b"x" * BLOCK
        assert calls.taken == ([] if number == errno.ENOSYS else [1])


async def test_submit_that_takes_some_leaves_the_rest_to_threads(path: Path, calls: Calls) -> None:
    async with opened(path, calls) as storage:
        calls.at_most = 3
        got = await asyncio.gather(*(read(storage, n * BLOCK, BLOCK) for n in range(8)))
        assert b"".join(got) == DATA[: 8 * BLOCK]
        assert calls.taken == [3]


async def test_open_without_a_free_context_works_on_threads(path: Path, calls: Calls) -> None:
    calls.fail["setup"] = errno.EAGAIN
    async with opened(path, calls) as storage:
        await storage.write([b"x" * BLOCK], 0)
        assert await content(storage) == b"x" * BLOCK + DATA[BLOCK:]
        assert calls.taken == []


async def test_failed_write_raises_with_its_range(path: Path, calls: Calls) -> None:
    async with opened(path, calls) as storage:
        descriptor = storage.fileno()
        read_only = os.open(path, os.O_RDONLY | os.O_DIRECT)
        os.dup2(read_only, descriptor)
        os.close(read_only)
        with pytest.raises(StorageError) as caught:
            await storage.write([bytes(BLOCK)], BLOCK)
        error = caught.value
        assert (error.errno, error.offset, error.length) == (errno.EBADF, BLOCK, BLOCK)
        assert await read(storage, 0, BLOCK) == DATA[:BLOCK]
        assert calls.taken == [1]


async def test_buffer_of_another_shape_fails_alone(path: Path, calls: Calls) -> None:
    async with opened(path, calls) as storage:
        numbers = memoryview(bytearray(BLOCK)).cast("I")
        bad, good = await asyncio.gather(
            storage.read_into([numbers], 0), read(storage, BLOCK, BLOCK), return_exceptions=True
        )
        assert isinstance(bad, StorageError)
        assert good == DATA[BLOCK : 2 * BLOCK]


async def test_cancelled_read_with_the_kernel_settles_first(path: Path, calls: Calls) -> None:
    async with opened(path, calls) as storage:
        calls.fail["getevents"] = errno.EINTR
        buffer = bytearray(BLOCK)
        task = asyncio.create_task(storage.read_into([buffer], 0))
        await calls.submitted.wait()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        calls.fail.clear()
        await read(storage, BLOCK, BLOCK)  # its completion wakes the loop for both
        with pytest.raises(asyncio.CancelledError):
            await task
        assert buffer == DATA[:BLOCK]


async def test_close_waits_for_what_the_kernel_has(path: Path, calls: Calls) -> None:
    async with opened(path, calls) as storage:
        reads = [asyncio.create_task(read(storage, n * BLOCK, BLOCK)) for n in range(40)]
        write = asyncio.create_task(storage.write([b"z" * BLOCK], 63 * BLOCK))
        await calls.submitted.wait()
        await storage.close()
        got = await asyncio.gather(*reads)
        await write
        assert b"".join(got) == DATA[: 40 * BLOCK]
    assert path.read_bytes()[63 * BLOCK :] == b"z" * BLOCK
    assert calls.open == 0


async def test_contexts_are_used_again(path: Path, calls: Calls) -> None:
    used = []
    for _ in range(3):
        async with opened(path, calls) as storage:
            assert await read(storage, 0, BLOCK) == DATA[:BLOCK]
            used.append(storage._native._context)
    assert len(set(used)) == 1
