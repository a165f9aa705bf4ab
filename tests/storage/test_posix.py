"""The fast storage: which writes are made inline, what keeps them out, and what threads do."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qedasync.errors import StorageError
from qedasync.events import Event
from qedasync.storage.base import Write
from qedasync.storage.direct import DirectStorage
from qedasync.storage.host import OpenedFile
from qedasync.storage.posix import PosixStorage
from qedasync.storage.workers import Workers
from tests.storage.backends import content, read

KIB = 1024
INLINE = 64 * KIB
LARGE = b"L" * (INLINE + 1)
"""Too long for an inline write."""


class HeldWorkers(Workers):
    """Threads that count what they are given, and wait with it while the test holds them."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop(), 8, "held-io")
        self.given = 0
        self._gates = [threading.Event()]
        self.let_pass()

    def hold(self) -> threading.Event:
        """What is given from now on waits until the event is set."""
        self._gates.append(threading.Event())
        return self._gates[-1]

    def let_pass(self) -> None:
        """What is given from now on does not wait."""
        self.hold().set()

    def release(self) -> None:
        """Nothing waits any more."""
        for gate in self._gates:
            gate.set()

    def submit(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        self.given += 1
        super().submit(partial(self._after, self._gates[-1], work), done)

    @staticmethod
    def _after(gate: threading.Event, work: Callable[[], None]) -> None:
        gate.wait()
        work()


class Clock:
    """Stands still, but for ``step`` seconds at each look."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Bench:
    """A storage on held threads and a clock of the test's."""

    def __init__(self, path: str | Path, local: bool, flags: int) -> None:
        self.workers = HeldWorkers()
        self.clock = Clock()
        self.waits = 0
        self.waiting = True
        fd = os.open(path, flags | os.O_CLOEXEC)
        size = os.fstat(fd).st_size
        self.storage = PosixStorage(
            OpenedFile(fd, size, nowait=False, local=local),
            os.fspath(path),
            asyncio.get_running_loop(),
            self.workers,
            clock=self.clock,
            waits=self._count_waits,
        )
        self.tasks: list[asyncio.Task[None]] = []

    def _count_waits(self) -> int:
        """What takes time waits, unless the test says otherwise."""
        self.waits += self.waiting and self.clock.step > 0
        return self.waits

    def be_watched(self) -> None:
        """Have one slow write behind us: from the next on, waiting counts."""
        step, self.clock.step = self.clock.step, 0.010
        assert self.storage.try_write([b"?"], 0)
        self.clock.step = step

    def start(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that has ended before the storage is closed."""
        self.tasks.append(asyncio.create_task(call))
        return self.tasks[-1]


@asynccontextmanager
async def bench(
    path: str | Path, *, local: bool = True, flags: int = os.O_RDWR
) -> AsyncIterator[Bench]:
    bench = Bench(path, local, flags)
    try:
        yield bench
    finally:  # if the test has failed, too: nothing may go on waiting
        bench.workers.release()
        await asyncio.gather(*bench.tasks, return_exceptions=True)
        await bench.storage.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    return path


def at_once(call: Coroutine[Any, Any, object]) -> bool:
    """Whether the coroutine ends without suspending."""
    try:
        call.send(None)
    except StopIteration:
        return True
    call.close()
    return False


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes; the last write is short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_of(data: bytes, offset: int) -> Write:
    return Write(offset, [data], len(data), Event.WRITE_AIO)


def small(storage: PosixStorage, many: bool, data: bytes, offset: int) -> Coroutine[Any, Any, None]:
    """One of the calls that may write inline."""
    return storage.write_many([write_of(data, offset)]) if many else storage.write([data], offset)


async def turns(count: int = 4) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# -------------------------------------------------------------- inline writes


async def test_small_write_on_a_local_file_is_made_without_suspending(path: Path) -> None:
    async with bench(path) as b:
        assert at_once(b.storage.write([b"xy", b"z"], 2))
        assert b.storage.size == 5
        assert path.read_bytes() == b"abxyz"
        assert await content(b.storage) == b"abxyz"


async def test_small_write_many_on_a_local_file_is_made_without_suspending(path: Path) -> None:
    async with bench(path) as b:
        writes = [write_of(b"xx", 0), write_of(b"", 900), write_of(b"y", 1), write_of(b"z", 7)]
        assert at_once(b.storage.write_many(writes, grow_to=10))
        assert b.storage.size == 10
        assert path.read_bytes() == b"xyc\0\0\0\0z\0\0"


async def test_open_on_a_local_file_system_writes_inline(path: Path) -> None:
    storage = await PosixStorage.open(path, writable=True)
    try:
        if not storage.try_write([b"x"], 0):
            pytest.skip("the temporary directory is on no file system that takes inline writes")
        assert path.read_bytes() == b"xbc"
    finally:
        await storage.close()


@pytest.mark.parametrize(("length", "given"), [(INLINE, 0), (INLINE + 1, 1)])
async def test_write_goes_to_a_thread_from_its_length_on(
    path: Path, length: int, given: int
) -> None:
    data = random.Random(length).randbytes(length)
    async with bench(path) as b:
        await b.storage.write([data[:100], data[100:]], 3)
        assert b.workers.given == given
        assert path.read_bytes() == b"abc" + data


@pytest.mark.parametrize(
    ("count", "length", "given"), [(160, 10, 0), (161, 10, 1), (16, INLINE, 0), (17, INLINE, 1)]
)
async def test_write_many_goes_to_a_thread_from_its_extent_on(
    path: Path, count: int, length: int, given: int
) -> None:
    step = length + 1
    async with bench(path) as b:
        await b.storage.write_many([write_of(b"w" * length, n * step) for n in range(count)])
        assert b.workers.given == given
        assert b.storage.size == count * step - 1
        got = path.read_bytes()
        assert got[0::step] == b"w" * count
        assert got.count(b"w") == count * length


async def test_write_of_more_buffers_than_a_call_takes_arrives(path: Path) -> None:
    async with bench(path) as b:
        assert b.storage.try_write([b"x"] * 2000, 1)
        assert path.read_bytes() == b"a" + b"x" * 2000
        await b.storage.write([b"y" * 100] * 2000, 1)  # too long for an inline write
        assert path.read_bytes() == b"a" + b"y" * 200_000
        assert b.workers.given == 1


async def test_file_that_is_not_local_is_never_written_inline(path: Path) -> None:
    async with bench(path, local=False) as b:
        assert not b.storage.try_write([b"x"], 0)
        assert path.read_bytes() == b"abc"
        await b.storage.write([b"x"], 0)
        await b.storage.write_many([write_of(b"y", 1)])
        assert b.workers.given == 2
        assert path.read_bytes() == b"xyc"


async def test_direct_file_is_never_written_inline(path: Path) -> None:
    try:
        storage = await DirectStorage.open(path, writable=True)
    except StorageError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("the file system of the temporary directory has no O_DIRECT")
    try:
        assert not storage.try_write([b"x"], 0)
        assert path.read_bytes() == b"abc"
    finally:
        await storage.close()


async def test_try_write_after_close_answers_false(path: Path) -> None:
    async with bench(path) as b:
        await b.storage.close()
        assert not b.storage.try_write([b"x"], 0)


# ---------------------------------------------------- what keeps them out


@pytest.mark.parametrize("many", [False, True])
async def test_inline_write_while_a_batch_is_on_a_thread_waits_for_it(
    path: Path, many: bool
) -> None:
    async with bench(path) as b:
        gate = b.workers.hold()
        large = b.start(b.storage.write([LARGE], 0))
        await turns()
        assert b.workers.given == 1
        assert not b.storage.try_write([b"x"], 1)
        late = b.start(small(b.storage, many, b"x", 1))
        await turns()
        assert not late.done()
        assert path.read_bytes() == b"abc"
        b.workers.let_pass()
        gate.set()
        await large
        await late
        assert path.read_bytes() == b"Lx" + LARGE[2:]
        assert b.storage.try_write([b"z"], 0)


@pytest.mark.parametrize("many", [False, True])
async def test_inline_write_while_another_is_queued_waits_for_it(path: Path, many: bool) -> None:
    async with bench(path) as b:
        b.workers.hold()
        queued = b.start(b.storage.write([LARGE], 0))
        late = b.start(small(b.storage, many, b"x", 1))
        await turns(1)
        assert b.workers.given == 0
        assert not b.storage.try_write([b"x"], 1)
        assert path.read_bytes() == b"abc"
        b.workers.release()
        await queued
        await late
        assert b.workers.given == 1
        assert b.storage.size == len(LARGE)


@pytest.mark.parametrize("many", [False, True])
async def test_inline_write_while_a_flush_is_in_flight_is_covered_by_the_next_one(
    path: Path, many: bool
) -> None:
    async with bench(path) as b:
        await b.storage.write([b"x"], 0)
        gate = b.workers.hold()
        first = b.start(b.storage.flush())
        await turns()
        b.workers.let_pass()
        await small(b.storage, many, b"y", 1)
        assert path.read_bytes() == b"xyc"
        assert b.workers.given == 1, "the flush only"
        second = b.start(b.storage.flush())
        await turns()
        assert not first.done()
        assert not second.done()
        gate.set()
        await first
        await second
        assert b.workers.given == 2


async def test_writes_while_a_truncate_is_in_flight_come_after_it(path: Path) -> None:
    async with bench(path) as b:
        gate = b.workers.hold()
        b.start(b.storage.truncate(1))
        await turns()
        b.workers.let_pass()
        assert not b.storage.try_write([b"x"], 2)
        late = b.start(b.storage.write([b"x"], 2))
        await turns()
        assert b.workers.given == 1
        gate.set()
        await late
        assert path.read_bytes() == b"a\0x"
        assert b.storage.size == 3
        assert b.storage.try_write([b"y"], 1)


async def test_truncate_beside_a_batch_leaves_the_size_that_the_file_has(path: Path) -> None:
    async with bench(path) as b:
        gate = b.workers.hold()
        large = b.start(b.storage.write([LARGE], 0))
        await turns()
        b.workers.let_pass()
        await b.storage.truncate(1)
        assert b.storage.size == 1
        gate.set()
        await large
        assert b.storage.size == path.stat().st_size


async def test_second_close_returns_when_the_first_has_released_the_file(path: Path) -> None:
    async with bench(path) as b:
        gate = b.workers.hold()
        large = b.start(b.storage.write([LARGE], 0))
        await turns()
        first = b.start(b.storage.close())
        second = b.start(b.storage.close())
        await turns()
        assert not first.done()
        assert not second.done()
        gate.set()
        await second
        assert first.done()
        assert b.storage.fileno() == -1
        await large


@pytest.mark.parametrize("local", [True, False])
async def test_mixed_writes_are_all_there_and_no_growth_cuts(path: Path, local: bool) -> None:
    region = 200 * KIB
    model = bytearray(6 * region)

    async def client(number: int, seed: random.Random) -> None:
        for step in range(12):
            length = seed.choice((1, 700, 4096, INLINE, INLINE + 1, 100 * KIB))
            offset = number * region + seed.randrange(region - length)
            data = bytes([number * 16 + step + 1]) * length
            model[offset : offset + length] = data
            if seed.random() < 0.4:
                await b.storage.write_many([write_of(data, offset)], grow_to=offset + length + 1)
            else:
                await b.storage.write([data], offset)
            assert await read(b.storage, offset, length) == data
            if seed.random() < 0.2:
                await b.storage.flush()

    async with bench(path, local=local) as b:
        await b.storage.truncate(0)
        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(client(number, random.Random(number)))
        got = path.read_bytes()
        assert len(got) == b.storage.size
        assert got.ljust(len(model), b"\0") == model


async def test_ordered_writes_inline_and_threaded_leave_the_last_on_top(path: Path) -> None:
    async with bench(path) as b:
        for step in range(1, 20):
            filler = LARGE if step % 3 == 0 else b"s" * 10
            writes = [write_of(filler, 100), write_of(bytes([step]) * 4, 102)]
            await b.storage.write_many(writes)
            assert await read(b.storage, 102, 4) == bytes([step]) * 4


# ------------------------------------------------------------------ slowness


@pytest.mark.parametrize("many", [False, True])
async def test_second_slow_inline_write_is_followed_by_a_rest(path: Path, many: bool) -> None:
    async with bench(path) as b:
        b.be_watched()
        b.clock.step = 0.010
        assert at_once(small(b.storage, many, b"x", 0))
        b.clock.step = 0.0
        end = b.clock.now
        assert not b.storage.try_write([b"y"], 1)
        await b.storage.write_many([write_of(b"y", 1)])
        assert b.workers.given == 1
        b.clock.now = end + 9.9
        assert not b.storage.try_write([b"z"], 2)
        b.clock.now = end + 10.1
        assert b.storage.try_write([b"z"], 2)
        assert path.read_bytes() == b"xyz"


@pytest.mark.parametrize("many", [False, True])
async def test_slow_inline_writes_that_wait_for_nothing_never_rest(path: Path, many: bool) -> None:
    """Another program had the processor: a thread would not have had it either."""
    async with bench(path) as b:
        b.clock.step = 0.010
        b.waiting = False
        for step in range(20):
            assert at_once(small(b.storage, many, b"x", step))
        assert b.workers.given == 0


async def test_slow_inline_write_long_after_another_is_the_first_again(path: Path) -> None:
    async with bench(path) as b:
        b.be_watched()
        b.clock.now += 11.0
        b.be_watched()
        assert b.storage.try_write([b"x"], 0)


async def test_slow_inline_write_rests_for_a_time_in_proportion(path: Path) -> None:
    async with bench(path) as b:
        b.be_watched()
        b.clock.step = 0.003
        assert b.storage.try_write([b"x"], 0)
        b.clock.step = 0.0
        b.clock.now += 2.5
        assert not b.storage.try_write([b"y"], 1)
        b.clock.now += 1.0
        assert b.storage.try_write([b"y"], 1)


async def test_quick_inline_writes_never_rest(path: Path) -> None:
    async with bench(path) as b:
        b.be_watched()
        b.clock.step = 0.0015
        for step in range(50):
            assert b.storage.try_write([b"x"], step)


@pytest.mark.parametrize("many", [False, True])
async def test_slow_inline_write_that_fails_is_followed_by_a_rest(path: Path, many: bool) -> None:
    async with bench(path) as b:
        b.be_watched()
        b.clock.step = 0.003
        with files_up_to(100), pytest.raises(StorageError):
            await small(b.storage, many, b"x", 100)
        b.clock.step = 0.0
        assert not b.storage.try_write([b"x"], 0)
        b.clock.now += 10.1
        assert b.storage.try_write([b"x"], 0)


# ------------------------------------------------------------------- failures


async def test_inline_write_to_a_full_device_raises_with_its_range() -> None:
    async with bench("/dev/full") as b:
        assert not b.storage.try_write([b"x"], 0)
        with pytest.raises(StorageError) as caught:
            await b.storage.write([b"ab", b"c"], 50)
        assert caught.value.errno == errno.ENOSPC
        assert (caught.value.offset, caught.value.length) == (50, 3)
        assert caught.value.filename == "/dev/full"
        assert b.storage.size == 0


async def test_inline_write_many_to_a_full_device_raises_with_its_range() -> None:
    async with bench("/dev/full") as b:
        with pytest.raises(StorageError) as caught:
            await b.storage.write_many([write_of(b"abc", 40), write_of(b"d", 60)])
        assert caught.value.errno == errno.ENOSPC
        assert (caught.value.offset, caught.value.length) == (40, 21)


async def test_inline_write_to_a_read_only_descriptor_raises_ebadf(path: Path) -> None:
    async with bench(path, flags=os.O_RDONLY) as b:
        with pytest.raises(StorageError) as caught:
            await b.storage.write([b"xy"], 1)
        assert caught.value.errno == errno.EBADF
        assert (caught.value.offset, caught.value.length) == (1, 2)
        assert path.read_bytes() == b"abc"


async def test_inline_write_that_is_short_is_no_success(path: Path) -> None:
    async with bench(path) as b:
        with files_up_to(6000), pytest.raises(StorageError) as caught:
            await b.storage.write([b"x" * 2000], 5000)
        assert caught.value.errno == errno.EFBIG
        assert (caught.value.offset, caught.value.length) == (5000, 2000)
        assert b.storage.try_write([b"x" * 2000], 5000)
        assert b.storage.size == 7000
        assert await read(b.storage, 5000, 2000) == b"x" * 2000


async def test_inline_write_many_that_breaks_off_raises_and_keeps_the_order(path: Path) -> None:
    async with bench(path) as b:
        writes = [write_of(b"x", 0), write_of(b"y", 7000), write_of(b"z", 1)]
        with files_up_to(6000), pytest.raises(StorageError) as caught:
            await b.storage.write_many(writes)
        assert caught.value.errno == errno.EFBIG
        assert path.read_bytes() == b"xbc"


# ---------------------------------------------------------------------- flush


@pytest.mark.parametrize("many", [False, True])
async def test_flush_after_an_inline_write_asks_the_host(many: bool) -> None:
    async with bench("/dev/null") as b:  # takes writes, and refuses fdatasync
        await b.storage.flush()
        if many:
            assert at_once(b.storage.write_many([write_of(b"x", 0)]))
        else:
            assert b.storage.try_write([b"x"], 0)
        for _ in range(2):  # and again: a failed flush has made nothing durable
            with pytest.raises(StorageError) as caught:
                await b.storage.flush()
            assert caught.value.errno == errno.EINVAL


async def test_flush_of_a_short_inline_write_asks_the_host(path: Path) -> None:
    async with bench(path) as b:
        with files_up_to(6000):
            assert not b.storage.try_write([b"x" * 2000], 5000)
        await b.storage.flush()
        assert b.workers.given == 1


async def test_flushes_at_once_share_one_call(path: Path) -> None:
    async with bench(path) as b:
        assert b.storage.try_write([b"x"], 0)
        gate = b.workers.hold()
        flushes = [b.start(b.storage.flush()) for _ in range(5)]
        await turns()
        flushes.append(b.start(b.storage.flush()))  # nothing new: the one on its way will do
        await turns()
        assert b.workers.given == 1
        assert not any(flush.done() for flush in flushes)
        gate.set()
        await asyncio.gather(*flushes)
        await b.storage.flush()  # nothing has been written since
        assert b.workers.given == 1


async def test_flushes_after_a_write_beside_a_flush_share_the_next_call(path: Path) -> None:
    async with bench(path) as b:
        assert b.storage.try_write([b"x"], 0)
        gate = b.workers.hold()
        first = b.start(b.storage.flush())
        await turns()
        b.workers.let_pass()
        await b.storage.write([b"y"], 1)
        later = [b.start(b.storage.flush()) for _ in range(3)]
        await turns()
        assert b.workers.given == 1  # the flush; the write was inline
        assert not any(flush.done() for flush in [first, *later])
        gate.set()
        await asyncio.gather(first, *later)
        assert b.workers.given == 2


async def test_cancelled_flush_settles_first(path: Path) -> None:
    async with bench(path) as b:
        assert b.storage.try_write([b"x"], 0)
        gate = b.workers.hold()
        flush = b.start(b.storage.flush())
        await turns()
        flush.cancel()
        await turns()
        assert not flush.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await flush


# -------------------------------------------------------------------- batches


async def test_many_writes_at_once_leave_in_one_batch_and_the_next(path: Path) -> None:
    async with bench(path, local=False) as b:
        gate = b.workers.hold()
        first = [b.start(b.storage.write([b"x"], n)) for n in range(16)]
        await turns()
        assert b.workers.given == 1
        b.workers.let_pass()
        second = [b.start(b.storage.write([b"y"], 16 + n)) for n in range(16)]
        await turns()
        assert b.workers.given == 1
        gate.set()
        await asyncio.gather(*first, *second)
        assert b.workers.given == 2
        assert b.storage.size == 32
        assert path.read_bytes() == b"x" * 16 + b"y" * 16


async def test_failing_write_among_adjacent_ones_fails_alone(path: Path) -> None:
    async with bench(path, local=False) as b:
        with files_up_to(6000):
            writes = [b.storage.write([b"x" * 1000], n * 1000) for n in range(4, 8)]
            results = await asyncio.gather(*writes, return_exceptions=True)
        assert results[:2] == [None, None]
        for number, error in zip((6, 7), results[2:], strict=True):
            assert isinstance(error, StorageError)
            assert error.errno == errno.EFBIG
            assert (error.offset, error.length) == (number * 1000, 1000)
        assert await read(b.storage, 4000, 2000) == b"x" * 2000
        assert b.storage.size == 6000


# --------------------------------------------------------------- cancellation


async def test_cancelled_queued_write_is_withdrawn(path: Path) -> None:
    async with bench(path) as b:
        b.workers.hold()
        running = b.start(b.storage.write([LARGE], 0))
        await turns()
        queued = b.start(b.storage.write([b"x"], 100))
        kept = b.start(b.storage.write([b"k"], 102))
        await turns()
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        assert not running.done()
        b.workers.release()
        await kept
        assert path.read_bytes()[99:104] == b"LLLkL"


async def test_cancelled_queued_read_is_withdrawn(path: Path) -> None:
    async with bench(path) as b:
        b.workers.hold()
        for _ in range(8):
            b.start(b.storage.read_into([bytearray(3)], 0))
        await turns()
        assert b.workers.given == 8
        buffer = bytearray(3)
        queued = b.start(b.storage.read_into([buffer], 0))
        await turns()
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        b.workers.release()
        await read(b.storage, 0, 3)
        assert not any(buffer)


async def test_cancelled_running_read_settles_first(path: Path) -> None:
    async with bench(path) as b:
        gate = b.workers.hold()
        buffer = bytearray(3)
        running = b.start(b.storage.read_into([buffer], 0))
        await turns()
        for _ in range(3):
            running.cancel()
            await turns()
            assert not running.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert buffer == b"abc"


async def test_cancelled_running_write_settles_first(path: Path) -> None:
    async with bench(path) as b:
        gate = b.workers.hold()
        running = b.start(b.storage.write([LARGE], 0))
        await turns()
        running.cancel()
        await turns()
        assert not running.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert path.read_bytes() == LARGE
        assert b.storage.size == len(LARGE)


async def test_cancelled_truncate_is_made_and_counted(path: Path) -> None:
    async with bench(path) as b:
        gate = b.workers.hold()
        running = b.start(b.storage.truncate(2))
        await turns()
        running.cancel()
        await turns()
        assert not running.done()
        gate.set()
        b.workers.let_pass()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert path.read_bytes() == b"ab"
        assert b.storage.size == 2
        await b.storage.flush()
        assert b.workers.given == 2  # the truncate and its flush


# ---------------------------------------------------------------------- close


async def test_close_waits_for_what_runs_and_what_is_queued(path: Path) -> None:
    async with bench(path) as b:
        b.workers.hold()
        running = b.start(b.storage.write([LARGE], 0))
        await turns()
        queued = b.start(b.storage.write([b"x"], 1))
        reading = b.start(b.storage.read_into([bytearray(1)], 0))
        await turns()
        closing = b.start(b.storage.close())
        await turns()
        assert not closing.done()
        assert b.storage.fileno() >= 0
        b.workers.release()
        await closing
        assert b.storage.fileno() == -1
        await asyncio.gather(running, queued, reading)
        assert path.read_bytes() == b"Lx" + LARGE[2:]


async def test_try_write_while_closing_answers_false(path: Path) -> None:
    async with bench(path) as b:
        b.workers.hold()
        reading = b.start(b.storage.read_into([bytearray(1)], 0))
        await turns()
        closing = b.start(b.storage.close())
        await turns()
        assert not b.storage.try_write([b"x"], 0)
        b.workers.release()
        await asyncio.gather(reading, closing)
        assert path.read_bytes() == b"abc"


async def test_close_during_a_truncate_lets_the_writes_behind_it_through(path: Path) -> None:
    async with bench(path) as b:
        b.workers.hold()
        cut = b.start(b.storage.truncate(1))
        await turns()
        b.workers.let_pass()
        queued = b.start(b.storage.write([b"x"], 2))
        await turns()
        closing = b.start(b.storage.close())
        await turns()
        assert not closing.done()
        b.workers.release()
        await asyncio.gather(cut, queued, closing)
        assert path.read_bytes() == b"a\0x"
