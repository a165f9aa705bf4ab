"""Past the page cache: what native AIO takes, what goes to threads, and what happens in between."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qedasync.errors import StorageError

if sys.platform != "linux":
    pytest.skip("O_DIRECT and native AIO are Linux's", allow_module_level=True)

from qedasync.storage.direct import DirectStorage
from qedasync.storage.kernel_io import LONGEST, MakeQueue, aio_queue, ring_queue
from qedasync.storage.posix import PosixStorage
from qedasync.storage.queue import SLOTS, Queue
from qedasync.storage.syscalls import Memory
from tests.storage.backends import content, direct, no_queue, read, ring

KIB = 1024
BLOCK = 4 * KIB
DATA = bytes(range(256)) * KIB
"""The file, 64 blocks that differ from their neighbours by nothing but where they lie."""


class Watched:
    """The host's queue, counted; some calls fail when the test says so."""

    def __init__(self, make: MakeQueue) -> None:
        self._make = make
        self.taken: list[int] = []  # requests, by submit
        self.open = 0  # queues
        self.fail: dict[str, int] = {}  # call -> errno
        self.submitted = asyncio.Event()
        self.at_most = SLOTS  # requests of one submit
        self.held = False  # whether nothing is said to be done

    def __call__(self, fd: int, data: Memory) -> Queue | None:
        queue = self._make(fd, data)
        if queue is None:
            pytest.skip("this host does not have it")
        self._queue = queue
        self.words, self.layout, self.eventfd = queue.words, queue.layout, queue.eventfd
        self.open += 1
        return self

    def submit(self, slots: Sequence[int]) -> int:
        if "submit" in self.fail:
            raise OSError(self.fail["submit"], os.strerror(self.fail["submit"]))
        taken = self._queue.submit(slots[: self.at_most])
        self.taken.append(taken)
        self.submitted.set()
        return taken

    def completed(self) -> Iterable[tuple[int, int]]:
        return () if self.held else self._queue.completed()

    def close(self) -> None:
        self.open -= 1
        self.words = memoryview(b"")
        self._queue.close()


@pytest.fixture(params=["io_uring", "aio"])
def calls(request: pytest.FixtureRequest) -> Watched:
    return Watched(ring_queue if request.param == "io_uring" else aio_queue)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        os.fsync(file)  # or native AIO would have to wait for it
    return path


@asynccontextmanager
async def opened(path: Path, make_queue: MakeQueue) -> AsyncIterator[DirectStorage]:
    try:
        storage = direct(path, make_queue)
    except StorageError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("the file system of the temporary directory has no O_DIRECT")
    try:
        yield storage
    finally:
        await storage.close()


async def test_reads_at_once_leave_in_few_calls(path: Path, calls: Watched) -> None:
    async with opened(path, calls) as storage:
        got = await asyncio.gather(*(read(storage, n * BLOCK, BLOCK) for n in range(8)))
        assert b"".join(got) == DATA[: 8 * BLOCK]
        assert calls.taken == [8]
        await asyncio.gather(*(read(storage, n * BLOCK, BLOCK) for n in range(48)))
        assert calls.taken == [8, 16, 16, 16]
    assert calls.open == 0


async def test_unaligned_read_of_several_buffers_is_cut_out(path: Path, calls: Watched) -> None:
    async with opened(path, calls) as storage:
        first, second = bytearray(3), bytearray(5000)
        await storage.read_into([first, second], 4090)
        assert bytes(first + second) == DATA[4090 : 4090 + 5003]
        assert calls.taken == [1]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, LONGEST + 1), (1, LONGEST), (len(DATA) - BLOCK, 2 * BLOCK)]
)
async def test_read_that_is_too_long_or_ends_early_gets_there(
    path: Path, calls: Watched, offset: int, length: int
) -> None:
    async with opened(path, calls) as storage:
        expected = DATA[offset : offset + length]
        assert await read(storage, offset, length) == expected + bytes(length - len(expected))


async def test_more_reads_than_slots_all_arrive(path: Path, calls: Watched) -> None:
    async with opened(path, calls) as storage:
        places = [n * 512 % len(DATA) for n in range(2 * SLOTS)]
        got = await asyncio.gather(*(read(storage, place, 512) for place in places))
        assert got == [DATA[place : place + 512] for place in places]


async def test_aligned_write_inside_the_file_takes_no_thread(path: Path, calls: Watched) -> None:
    async with opened(path, calls) as storage:
        await storage.write([b"a" * 1024, bytearray(b"b" * 3072)], BLOCK)
        assert calls.taken == [1]
        await storage.flush()
        assert path.read_bytes()[BLOCK : 2 * BLOCK] == b"a" * 1024 + b"b" * 3072


@pytest.mark.parametrize(("offset", "length"), [(1, BLOCK), (BLOCK, 100), (len(DATA), BLOCK)])
async def test_write_unaligned_or_past_the_end_goes_to_a_thread(
    path: Path, calls: Watched, offset: int, length: int
) -> None:
    async with opened(path, calls) as storage:
        await storage.write([b"w" * length], offset)
        assert calls.taken == []
        expected = bytearray(DATA)
        expected[offset : offset + length] = b"w" * length
        assert path.read_bytes() == expected
        assert storage.size == len(expected)


async def test_unaligned_write_waits_for_native_ones(path: Path, calls: Watched) -> None:
    """It reads the blocks around its bytes, and would write back what they were."""
    async with opened(path, calls) as storage:
        for n in range(20):
            aligned, odd = bytes([n]) * BLOCK, bytes([n + 100]) * 10
            await asyncio.gather(storage.write([aligned], 0), storage.write([odd], BLOCK))
            assert (await read(storage, 0, BLOCK + 10)) == aligned + odd


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOSYS, errno.EIO])
async def test_submit_that_fails_is_made_up_for_by_threads(
    path: Path, calls: Watched, number: int
) -> None:
    async with opened(path, calls) as storage:
        calls.fail["submit"] = number
        assert await read(storage, BLOCK, BLOCK) == DATA[BLOCK : 2 * BLOCK]
        await storage.write([b"x" * BLOCK], BLOCK)
        calls.fail.clear()
        assert await read(storage, BLOCK, BLOCK) == b"x" * BLOCK
        assert calls.taken == ([] if number == errno.ENOSYS else [1])


async def test_submit_that_takes_some_leaves_the_rest_to_threads(
    path: Path, calls: Watched
) -> None:
    async with opened(path, calls) as storage:
        calls.at_most = 3
        got = await asyncio.gather(*(read(storage, n * BLOCK, BLOCK) for n in range(8)))
        assert b"".join(got) == DATA[: 8 * BLOCK]
        assert calls.taken == [3]


async def test_host_without_a_queue_works_on_threads(path: Path) -> None:
    async with opened(path, no_queue) as storage:
        assert storage.start_read(BLOCK, 0) is None
        await storage.write([b"x" * BLOCK], 0)
        assert await content(storage) == b"x" * BLOCK + DATA[BLOCK:]


async def test_failed_write_raises_with_its_range(path: Path, calls: Watched) -> None:
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
        assert calls.taken[-1] == 1


async def test_buffer_of_another_shape_fails_alone(path: Path, calls: Watched) -> None:
    async with opened(path, calls) as storage:
        numbers = memoryview(bytearray(BLOCK)).cast("I")
        bad, good = await asyncio.gather(
            storage.read_into([numbers], 0), read(storage, BLOCK, BLOCK), return_exceptions=True
        )
        assert isinstance(bad, StorageError)
        assert good == DATA[BLOCK : 2 * BLOCK]


async def test_cancelled_read_with_the_kernel_settles_first(path: Path, calls: Watched) -> None:
    async with opened(path, calls) as storage:
        calls.held = True
        buffer = bytearray(BLOCK)
        task = asyncio.create_task(storage.read_into([buffer], 0))
        await calls.submitted.wait()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        calls.held = False
        await read(storage, BLOCK, BLOCK)  # its completion wakes the loop for both
        with pytest.raises(asyncio.CancelledError):
            await task
        assert buffer == DATA[:BLOCK]


async def test_close_waits_for_what_the_kernel_has(path: Path, calls: Watched) -> None:
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


async def test_contexts_are_used_again(path: Path) -> None:
    used = []

    def watched(fd: int, data: Memory) -> Queue | None:
        queue = aio_queue(fd, data)
        used.append(getattr(queue, "_context", None))
        return queue

    for _ in range(3):
        async with opened(path, watched) as storage:
            assert await read(storage, 0, BLOCK) == DATA[:BLOCK]
    assert len(set(used)) == 1


# --------------------------------------------------------------- reads without a coroutine


@pytest.fixture
async def cached(path: Path) -> AsyncIterator[PosixStorage]:
    """Through the page cache, with a ring for what would block: here, everything."""
    if no_ring():
        pytest.skip("no io_uring on this host")
    storage = ring(path)
    yield storage
    await storage.close()


def no_ring() -> bool:
    with open(__file__, "rb") as file:
        queue = ring_queue(file.fileno(), Memory(SLOTS * LONGEST))
    if queue is None:
        return True
    os.close(queue.eventfd)
    queue.close()
    return False


@pytest.mark.parametrize(("offset", "length"), [(0, BLOCK), (4090, 5003), (1, 1), (0, LONGEST)])
async def test_started_read_has_its_bytes(
    path: Path, calls: Watched, offset: int, length: int
) -> None:
    async with opened(path, calls) as storage:
        assert await begun(storage, length, offset) == DATA[offset : offset + length]


async def test_started_reads_of_one_turn_leave_in_few_calls(path: Path, calls: Watched) -> None:
    async with opened(path, calls) as storage:
        started = [storage.start_read(BLOCK, n * BLOCK) for n in range(40)]
        assert None not in started
        assert (
            b"".join([bytes(await read or b"") for read in started if read]) == DATA[: 40 * BLOCK]
        )
        assert calls.taken == [16, 16, 8]


@pytest.mark.parametrize("length", [0, LONGEST + 1])
async def test_read_of_no_or_too_many_bytes_is_not_started(
    path: Path, calls: Watched, length: int
) -> None:
    async with opened(path, calls) as storage:
        assert storage.start_read(length, 0) is None


async def test_no_read_is_started_without_a_slot(path: Path, calls: Watched) -> None:
    async with opened(path, calls) as storage:
        started = [storage.start_read(512, 0) for _ in range(SLOTS)]
        assert storage.start_read(512, 0) is None
        assert {bytes(await read or b"") for read in started if read} == {DATA[:512]}
        assert storage.start_read(512, 0) is not None


async def begun(storage: PosixStorage, length: int, offset: int) -> bytes | None:
    """What a read without a coroutine gives."""
    started = storage.start_read(length, offset)
    assert started is not None
    data = await started
    return None if data is None else bytes(data)


async def test_started_read_past_the_end_is_for_another_way(path: Path, calls: Watched) -> None:
    async with opened(path, calls) as storage:
        assert await begun(storage, BLOCK, len(DATA) - 512) is None


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOSYS])
async def test_started_read_that_is_not_taken_is_for_another_way(
    path: Path, calls: Watched, number: int
) -> None:
    async with opened(path, calls) as storage:
        calls.fail["submit"] = number
        assert await begun(storage, BLOCK, 0) is None
        assert (storage.start_read(BLOCK, 0) is None) == (number == errno.ENOSYS)


async def test_cancelled_started_read_leaves_its_slot_until_the_end(
    path: Path, calls: Watched
) -> None:
    async with opened(path, calls) as storage:
        started = storage.start_read(BLOCK, 0)
        task = asyncio.ensure_future(started) if started else None
        assert task is not None
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await read(storage, BLOCK, BLOCK) == DATA[BLOCK : 2 * BLOCK]
    assert calls.open == 0


async def test_ring_reads_through_the_page_cache(cached: PosixStorage) -> None:
    """What was just written is there, whether it has reached the disk or not."""
    for n in range(20):
        new = bytes([n]) * 100
        await cached.write([new], 77)
        assert await begun(cached, 102, 76) == DATA[76:77] + new + DATA[177:178]


async def test_ring_is_made_after_some_reads_that_would_block(path: Path) -> None:
    if no_ring():
        pytest.skip("no io_uring on this host")
    storage = await PosixStorage.open(path)
    try:
        assert storage.start_read(BLOCK, 0) is None
        started = [storage.start_read(BLOCK, 0) for _ in range(99)]
        assert started[-1] is not None
        got = [bytes(await read or b"") for read in started if read is not None]
        assert got == [DATA[:BLOCK]] * len(got)
        assert len(got) < 99
    finally:
        await storage.close()
    assert storage.start_read(BLOCK, 0) is None


async def test_files_of_a_ring_are_closed_with_it(path: Path, cached: PosixStorage) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    await read(cached, 0, BLOCK)
    before = descriptors()
    storage = ring(path)
    assert await read(storage, 0, BLOCK) == DATA[:BLOCK]
    assert descriptors() > before + 1
    await storage.close()
    assert descriptors() == before
