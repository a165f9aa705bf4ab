"""qemu-img bench's requests: where they go, and when there is a flush between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qedasync.bench import Stream, run_stream
from qedasync.errors import RequestError, StorageError
from tests.bench.test_runner import SIZE, FakeImage


def stream(**options: Any) -> Stream:
    return Stream(**{"count": 10, "depth": 4, **options})


def test_positions_go_by_steps_and_start_over_past_the_end() -> None:
    assert list(stream(count=5, step=30, offset=50).positions(100)) == [50, 80, 10, 40, 70]
    assert list(stream(count=2, step=30, offset=500).positions(0)) == [500, 0]


@pytest.mark.parametrize(
    ("count", "depth", "interval", "portions"),
    [
        (10, 4, 0, [10]),
        (10, 4, 5, [5, 5]),
        (11, 4, 5, [6, 5]),
        (11, 1, 5, [1, 5, 5]),
        (10, 4, 4, [6, 4]),
        (3, 4, 8, [3]),
        (10, 4, 8, [10]),
        (0, 4, 5, [0]),
    ],
)
def test_portions_are_full_intervals_counted_from_the_end(
    count: int, depth: int, interval: int, portions: list[int]
) -> None:
    found = stream(count=count, depth=depth, flush_interval=interval)
    assert list(found.portions()) == portions


@pytest.mark.parametrize("writes", [False, True])
async def test_run_stream_sends_so_many_so_many_at_a_time(writes: bool) -> None:
    image = FakeImage()
    took = await run_stream(image, stream(count=50, writes=writes, fill=7), SIZE)
    assert took > 0
    assert image.calls == ["write" if writes else "read"] * 50
    assert image.most_in_flight == 4
    assert image.content[: 50 * 4096] == bytes([7 * writes]) * (50 * 4096)


async def test_run_stream_drained_flushes_come_when_nothing_is_in_flight() -> None:
    image = FakeImage()
    await run_stream(image, stream(count=11, writes=True, flush_interval=5), SIZE)
    assert image.calls == ["write"] * 6 + ["flush"] + ["write"] * 5 + ["flush"]


async def test_run_stream_undrained_flushes_come_beside_the_requests() -> None:
    image = FakeImage()
    await run_stream(image, stream(count=40, writes=True, flush_interval=8, drain=False), SIZE)
    assert image.calls.count("flush") == 5
    assert image.calls.count("write") == 40
    assert image.most_in_flight == 5


async def test_run_stream_failing_request_ends_it_as_itself() -> None:
    image = FakeImage()

    def fail(number: int) -> None:
        if number == 5:
            raise StorageError(5)

    image.on_call = fail
    with pytest.raises(StorageError):
        await run_stream(image, stream(count=1000), SIZE)
    assert len(image.calls) < 20


async def test_run_stream_failing_flush_beside_ends_it_as_itself() -> None:
    image = FakeImage()

    async def fail() -> None:
        raise StorageError(5)

    image.flush = fail  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        await run_stream(image, stream(writes=True, flush_interval=4, drain=False), SIZE)


async def test_run_stream_of_requests_larger_than_the_image_makes_no_buffer() -> None:
    with pytest.raises(RequestError):
        await run_stream(FakeImage(), stream(length=1 << 60, writes=True), SIZE)


async def test_run_stream_cancelled_leaves_nothing_behind() -> None:
    image = FakeImage()
    task = asyncio.create_task(run_stream(image, stream(count=10**9), SIZE))

    def cancel(number: int) -> None:
        if number == 50:
            task.cancel()

    image.on_call = cancel
    with pytest.raises(asyncio.CancelledError):
        await task
    assert image.in_flight <= 4
