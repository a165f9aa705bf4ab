"""Coroutines that run at once and become a task only if they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from qedasync.nbd.eager import run_eagerly


class Started:
    """The tasks that were made."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def __call__(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))


async def test_work_that_never_waits_needs_no_task() -> None:
    started, done = Started(), []

    async def work() -> None:
        done.append(1)

    assert run_eagerly(work(), started)
    assert (done, started.tasks) == ([1], [])


async def test_work_that_waits_goes_on_in_a_task() -> None:
    started, done = Started(), []
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(await future)
        await asyncio.sleep(0.001)
        done.append(2)

    assert not run_eagerly(work(), started)
    future.set_result(1)
    await asyncio.gather(*started.tasks)
    assert done == [1, 2]


async def test_cancelled_work_can_tidy_up() -> None:
    started, done = Started(), []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.001)
            done.append("tidied")

    run_eagerly(work(), started)
    await asyncio.sleep(0)
    started.tasks[0].cancel()
    await asyncio.wait(started.tasks)
    assert started.tasks[0].cancelled()
    assert done == ["tidied"]


async def test_failed_future_is_thrown_where_it_is_awaited() -> None:
    started, seen = Started(), []
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await future
        except ValueError as error:
            seen.append(str(error))

    run_eagerly(work(), started)
    future.set_exception(ValueError("late"))
    await asyncio.gather(*started.tasks)
    assert seen == ["late"]
