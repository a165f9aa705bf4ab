"""The parts of the jobs: finding zeroes, windows of a file, whole clusters, the threads."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Sequence
from ctypes import addressof, c_char
from random import Random

import pytest

from qedasync import Extent, ExtentKind
from qedasync.jobs import zeroes
from qedasync.jobs.buffers import new_buffer
from qedasync.jobs.crew import Crew, in_thread
from qedasync.jobs.grid import on_grid
from qedasync.jobs.pump import Window, Windows, reserve_ahead
from tests.jobs.disks import KIB, patchwork

DATA, ZERO, BACKING, NONE = (
    ExtentKind.DATA,
    ExtentKind.ZERO,
    ExtentKind.BACKING,
    ExtentKind.UNALLOCATED,
)


# ----------------------------------------------------------------------- zeroes


@pytest.mark.parametrize("least", [0, 4096, 16384])
@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 100 * KIB + 5, 256 * KIB])
def test_zero_runs_tile_the_piece_and_are_zeroes(length: int, least: int) -> None:
    data = bytearray(patchwork(256 * KIB, length + 1))
    done = 0
    for start, size, zero in zeroes.runs(data, length, least):
        assert start == done
        assert size > 0
        done += size
        if zero:
            assert least
            assert not any(data[start : start + size])
            assert size >= least or start == 0 or start + size == length
    assert done == length


def test_zero_runs_find_every_page_of_zeroes() -> None:
    data = bytearray(patchwork(256 * KIB, 2))
    left_out = {
        page
        for start, size, zero in zeroes.runs(data, len(data), 4096)
        if zero
        for page in range(start, start + size, 4096)
    }
    assert left_out == {
        page for page in range(0, len(data), 4096) if not any(data[page : page + 4096])
    }


@pytest.mark.parametrize("unit", [4096, 32768])
@pytest.mark.parametrize("length", [256 * KIB, 200 * KIB + 77])
def test_data_runs_leave_out_whole_units_of_zeroes_only(length: int, unit: int) -> None:
    data = bytearray(patchwork(256 * KIB, unit + length))
    kept = bytearray(length)
    for start, size in zeroes.data_runs(data, length, 4096, unit):
        kept[start : start + size] = data[start : start + size]
        assert start % unit == 0
        assert (start + size) % unit == 0 or start + size == length
    assert kept == data[:length]


def test_is_zero_needs_every_byte() -> None:
    assert zeroes.is_zero(bytearray())
    assert zeroes.is_zero(bytearray(10_000))
    for pos in (0, 5000, 9999):
        data = bytearray(10_000)
        data[pos] = 1
        assert not zeroes.is_zero(data)


@pytest.mark.parametrize(
    ("least", "expected"),
    [(0, 1 << 20), (4096, 1 << 20), (1 << 20, 1 << 20), (3 << 20, 4 << 20), (1 << 40, 16 << 20)],
)
def test_piece_is_as_large_as_the_zeroes_to_find(least: int, expected: int) -> None:
    assert zeroes.piece_size(1 << 20, least) == expected


@pytest.mark.parametrize("size", [4096, 512 * KIB])
def test_new_buffer_is_aligned_and_as_long_as_said(size: int) -> None:
    buffer = new_buffer(size)
    assert buffer == bytearray(size)
    assert addressof(c_char.from_buffer(buffer)) % 64 == 0


# ---------------------------------------------------------------------- windows


def extent(start: int, end: int, kind: ExtentKind = DATA, **more: int) -> Extent:
    more.setdefault("offset", start + 100)
    zero = kind in (ZERO, NONE)
    return Extent(start, end - start, kind, zero, path="x", **more)


def windows(runs: list[Extent], size: int, total: int) -> list[Window]:
    maker = Windows(size, total)
    return [window for run in runs if not run.zero for window in maker.add(run)] + [*maker.rest()]


def test_windows_have_all_data_and_no_hole() -> None:
    runs = [extent(5, 25), extent(25, 70, ZERO), extent(70, 71), extent(71, 95, offset=1000)]
    assert windows(runs, 10, 93) == [
        Window(0, 10, [(5, 105, 5)], number=0),
        Window(10, 10, [(0, 110, 10)], number=1),
        Window(20, 10, [(0, 120, 5)], number=2),
        Window(70, 10, [(0, 170, 1), (1, 1000, 9)], number=3),
        Window(80, 10, [(0, 1009, 10)], number=4),
        Window(90, 3, [(0, 1019, 5)], number=5),
    ]


def test_windows_rest_ends_before_what_is_elsewhere() -> None:
    maker = Windows(10, 30)
    assert [window.start for window in maker.add(extent(0, 15))] == [0]
    assert list(maker.rest(10)) == []


def test_windows_of_a_long_run_are_made_as_one_asks() -> None:
    made = Windows(512 * KIB, 1 << 60).add(extent(0, 1 << 60))
    assert [next(made).start for _ in range(3)] == [0, 512 * KIB, 1024 * KIB]


def test_reserve_ahead_joins_full_neighbours_only() -> None:
    batch = list(windows([extent(0, 35), extent(50, 70), extent(80, 90)], 10, 90))
    reserve_ahead(batch)
    assert [(window.start, window.reserve, window.reserved) for window in batch] == [
        (0, 30, True),
        (10, 0, True),
        (20, 0, True),
        (30, 0, False),
        (50, 20, True),
        (60, 0, True),
        (80, 10, True),
    ]


@pytest.mark.parametrize("seed", range(20))
async def test_grid_is_what_each_cluster_has(seed: int) -> None:
    random = Random(seed)
    total, size = 1000 - seed, 64
    kinds = [random.choice([DATA, ZERO, BACKING, NONE]) for _ in range(total)]
    if seed % 2:
        kinds = [kinds[pos // 90] for pos in range(total)]
    runs, start = [], 0
    for kind, group in itertools.groupby(kinds):
        end = start + len(list(group))
        runs.append(extent(start, end, kind))
        start = end
    found: list[ExtentKind] = []

    async def given() -> AsyncIterator[Extent]:
        for run in runs:
            yield run

    async for run in on_grid(given(), size, total):
        assert run.start == len(found)
        assert run.zero == (run.kind is not DATA)
        found += [run.kind] * run.length
    assert len(found) == total
    for pos in range(0, total, size):
        held = {BACKING if kind is NONE else kind for kind in kinds[pos : pos + size]}
        expected = held.pop() if len(held) == 1 else DATA
        assert set(found[pos : pos + size]) == {expected}, pos


# ---------------------------------------------------------------------- threads


async def test_crew_does_everything_once() -> None:
    done: list[int] = []
    ticks: list[int] = []

    def work(item: int) -> bool:
        done.append(item)
        return True

    with Crew(work, 8) as crew:
        assert await crew.do(range(100), ticks.append) == []
        assert await crew.do([], ticks.append) == []
        assert await crew.do([100], ticks.append) == []
    assert sorted(done) == list(range(101))
    assert ticks[-1] == 0


@pytest.mark.parametrize("tasks", [1, 2])
async def test_crew_gives_back_what_failed_and_what_was_not_begun(tasks: int) -> None:
    done: list[int] = []

    def work(item: int) -> bool:
        if item == 5:
            raise OSError
        done.append(item)
        return item != 3

    with Crew(work, tasks) as crew:
        left = await crew.do(range(10), lambda left: None)
    assert sorted({*done, *left}) == list(range(10))
    assert 3 in left
    assert min(left) == 3
    if tasks == 1:
        assert sorted(left) == [3, 4, 5, 6, 7, 8, 9]


async def test_crew_bug_in_the_work_reaches_the_caller() -> None:
    def work(item: int) -> bool:
        return 1 // item > 0

    with Crew(work, 2) as crew:
        with pytest.raises(ZeroDivisionError):
            await crew.do([0], lambda left: None)


@pytest.mark.parametrize("cancels", [1, 3])
async def test_crew_cancelled_waits_for_what_has_begun(cancels: int) -> None:
    go_on, began, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()
    done: list[int] = []

    def work(item: int) -> bool:
        loop.call_soon_threadsafe(began.set)
        go_on.wait()
        done.append(item)
        return True

    async def run(items: Sequence[int]) -> None:
        with Crew(work, 1) as crew:
            await crew.do(items, lambda left: None)

    task = asyncio.create_task(run(range(10)))
    await began.wait()
    for _ in range(cancels):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert done == [0]


async def test_in_thread_cancelled_runs_to_its_end() -> None:
    go_on, began, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()

    def wait() -> int:
        loop.call_soon_threadsafe(began.set)
        go_on.wait()
        return 7

    task = asyncio.create_task(in_thread(wait))
    await began.wait()
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await in_thread(wait) == 7
