"""The image's own tasks: kept, named, waited for."""

from __future__ import annotations

import asyncio
import gc

import pytest

from qedasync.engine.tasks import TaskOwner
from tests.engine.harness import turns


async def test_start_names_and_keeps_the_task() -> None:
    owner = TaskOwner("disk")
    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    assert owner.start(work(), "x").get_name() == "disk: x"
    gc.collect()
    await done.wait()
    await owner.drain()


async def test_drain_waits_for_tasks_that_tasks_started() -> None:
    owner = TaskOwner("disk")
    ended: list[str] = []

    async def inner() -> None:
        await turns(3)
        ended.append("inner")

    async def outer() -> None:
        await turns(3)
        owner.start(inner(), "inner")

    owner.start(outer(), "outer")
    await owner.drain()
    assert ended == ["inner"]


async def test_drain_cancelled_runs_to_the_end_first() -> None:
    owner = TaskOwner("disk")
    release = asyncio.Event()

    async def work() -> None:
        await release.wait()

    task = owner.start(work(), "x")
    draining = asyncio.create_task(owner.drain())
    for _ in range(2):
        await turns()
        draining.cancel()
    await turns()
    assert not draining.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert task.done()
    assert not task.cancelled()


async def test_start_failing_task_does_not_reach_the_loops_handler() -> None:
    owner = TaskOwner("disk")

    async def work() -> None:
        raise ValueError("seen by who waits")

    task = owner.start(work(), "x")
    await owner.drain()
    with pytest.raises(ValueError, match="seen"):
        await task
