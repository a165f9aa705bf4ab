"""Several transfers inside one call: bounded, and with one error that leaves as itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from qedasync.engine.fanout import run_all
from tests.engine.harness import turns


async def test_run_all_many_runs_each_once_and_a_bounded_number_at_once() -> None:
    running = most = 0
    done: list[int] = []

    async def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await turns(3)
        running -= 1
        done.append(number)

    await run_all(work(number) for number in range(200))
    assert sorted(done) == list(range(200))
    assert 1 < most <= 64


async def test_run_all_nothing_returns() -> None:
    await run_all([])


async def test_run_all_error_leaves_as_itself_after_the_others_ended() -> None:
    ended = False

    async def fail() -> None:
        raise OSError(5, "no")

    async def slow() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    with pytest.raises(OSError, match="no"):
        await run_all([slow(), fail()])
    assert ended


async def test_run_all_error_of_a_single_one_leaves_as_itself() -> None:
    async def fail() -> None:
        raise OSError(5, "no")

    with pytest.raises(OSError, match="no"):
        await run_all([fail()])


async def test_run_all_after_an_error_starts_no_more() -> None:
    started = 0

    async def work() -> None:
        raise OSError(5, "no")

    def pending() -> Iterator[Coroutine[Any, Any, None]]:
        nonlocal started
        for _ in range(100):
            started += 1
            yield work()

    with pytest.raises(OSError, match="no"):
        await run_all(pending())
    assert started == 64


async def test_run_all_cancelled_ends_all_first() -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    task = asyncio.create_task(run_all(work(number) for number in range(3)))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(ended) == 3
